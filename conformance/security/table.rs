//! The table of advisories: each row names tests, and each of those exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Rows of the table: advisories, why not, tests.
fn rows() -> Vec<[String; 3]> {
    let text = include_str!("README.md");
    let rows = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| advisory"));
    rows.map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
        cells.try_into().unwrap_or_else(|cells| panic!("{} cells, not 3: {cells:?}", Vec::len(&cells)))
    })
    .collect()
}

/// `` `path/to/file.rs::name_of_a_test` `` in a cell.
fn tests(cell: &str) -> Vec<(String, String)> {
    let quoted = cell.split('`').skip(1).step_by(2);
    quoted
        .map(|name| {
            let (file, test) = name.split_once("::").unwrap_or_else(|| panic!("{name} has no file"));
            (file.to_owned(), test.to_owned())
        })
        .collect()
}

#[test]
fn every_test_of_the_table_exists() {
    let rows = rows();
    assert!(rows.len() > 40, "{} rows", rows.len());
    let mut wrong = Vec::new();
    for [advisory, reason, cell] in &rows {
        let named = tests(cell);
        if named.is_empty() || reason.is_empty() {
            wrong.push(format!("{advisory}: a row needs a reason and a test"));
        }
        for (file, test) in named {
            let text = fs::read_to_string(repository().join(&file)).unwrap_or_default();
            // As an item, or as a case of one of the macros that make an item of it.
            let item = text.contains(&format!("fn {test}("));
            let marked =
                text.lines().any(|line| line.trim().ends_with("test]")) || text.contains("both_forms!(");
            if !item || !marked {
                wrong.push(format!("{advisory}: {file} has no test {test}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A test of this suite that no row names proves nothing to whoever reads the table.
#[test]
fn every_test_of_the_suite_is_in_the_table() {
    let named: BTreeSet<_> = rows().iter().flat_map(|[_, _, cell]| tests(cell)).collect();
    let declared = include_str!("main.rs");
    let mut missing = Vec::new();
    for entry in fs::read_dir(repository().join("conformance/security")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let module = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if matches!(&*module, "main" | "table") {
            continue;
        }
        assert!(declared.contains(&format!("\nmod {module};\n")), "{module} is not run");
        let text = fs::read_to_string(&path).unwrap();
        for name in text.split("#[tokio::test]").skip(1) {
            let name = name.split("async fn ").nth(1).and_then(|rest| rest.split('(').next()).unwrap();
            let key = (format!("conformance/security/{module}.rs"), name.to_owned());
            if !named.contains(&key) {
                missing.push(key);
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
