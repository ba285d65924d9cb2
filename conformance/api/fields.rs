//! `FIELDS.md` lists every field of the runtime service, no other, and names tests that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use prost::Message as _;
use prost_types::{DescriptorProto, FileDescriptorSet};

const TABLE: &str = include_str!("../FIELDS.md");

/// Fields of every message that a call of the runtime service can carry, Windows aside: `Message.field`.
fn of_the_descriptor() -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(pinnace_cri_api::DESCRIPTORS).expect("decode the descriptors");
    let messages: BTreeMap<String, &DescriptorProto> = set
        .file
        .iter()
        .flat_map(|file| file.message_type.iter().map(move |message| (file.package(), message)))
        .map(|(package, message)| (format!(".{package}.{}", message.name()), message))
        .collect();
    let services = set.file.iter().flat_map(|file| &file.service);
    let service =
        services.into_iter().find(|service| service.name() == "RuntimeService").expect("the service");
    let mut open: Vec<String> = service
        .method
        .iter()
        .flat_map(|method| [method.input_type().to_owned(), method.output_type().to_owned()])
        .collect();
    let mut seen = BTreeSet::new();
    let mut fields = BTreeSet::new();
    while let Some(name) = open.pop() {
        let short = name.rsplit('.').next().unwrap_or_default();
        let Some(message) = messages.get(&name).filter(|_| !short.starts_with("Windows")) else { continue };
        if !seen.insert(name.clone()) {
            continue;
        }
        for field in &message.field {
            fields.insert(format!("{short}.{}", field.name()));
            open.push(field.type_name().to_owned());
        }
        // Values of maps are messages nested in this one.
        let nested = message.nested_type.iter().flat_map(|entry| &entry.field);
        open.extend(nested.map(|field| field.type_name().to_owned()));
    }
    fields
}

/// The table's rows: `Message.field`, what becomes of it, test.
fn of_the_table() -> Vec<(String, String, String)> {
    let mut message = "";
    let mut rows = Vec::new();
    for line in TABLE.lines() {
        if let Some(name) = line.strip_prefix("## ") {
            message = name;
        }
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        if let ["", field, text, test, ""] = cells[..]
            && !["field", "---"].contains(&field)
        {
            rows.push((format!("{message}.{field}"), text.to_owned(), test.to_owned()));
        }
    }
    rows
}

/// `module::name` of every test of the node suite.
fn tests_of_the_node() -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("node");
    for entry in std::fs::read_dir(dir).expect("list the node suite") {
        let path = entry.expect("list the node suite").path();
        let module = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("read the node suite");
        for after in text.split("#[tokio::test").skip(1) {
            let name = after.split("fn ").nth(1).and_then(|rest| rest.split('(').next());
            tests.insert(format!("{module}::{}", name.unwrap_or_default()));
        }
    }
    tests
}

#[test]
fn every_field_is_listed_with_a_test_that_exists() {
    let rows = of_the_table();
    let listed: BTreeSet<_> = rows.iter().map(|(field, _, _)| field.clone()).collect();
    assert_eq!(listed.len(), rows.len(), "a field is listed twice");
    let fields = of_the_descriptor();
    assert!(fields.len() > 300, "the descriptor was not understood: {} fields", fields.len());
    let absent: Vec<_> = fields.difference(&listed).collect();
    let invented: Vec<_> = listed.difference(&fields).collect();
    assert!(absent.is_empty() && invented.is_empty(), "absent {absent:?}, invented {invented:?}");
    let tests = tests_of_the_node();
    for (field, text, test) in rows {
        assert!(!text.is_empty(), "{field} says nothing");
        assert!(tests.contains(&test), "{field}: no test {test}");
    }
}
