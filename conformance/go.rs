//! Programs in Go: parts of Kubernetes that our own are held against.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A program that was built for this test run.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    _dir: TempDir,
}

impl Program {
    /// Builds the module in a directory below `conformance/`; `None` where Go is missing or too old.
    #[must_use]
    pub fn build(module: &str) -> Option<Program> {
        Program::build_with(module, &[])
    }

    /// The same with more arguments of `go build`.
    #[must_use]
    pub fn build_with(module: &str, arguments: &[&str]) -> Option<Program> {
        let version = Command::new("go").arg("version").output().ok()?.stdout;
        // From 1.21 on Go fetches the toolchain that go.mod asks for.
        let minor =
            String::from_utf8_lossy(&version).split("go1.").nth(1)?.split(['.', ' ']).next()?.parse::<u32>();
        if minor.ok()? < 21 {
            return None;
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(module);
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join(module);
        let mut build = Command::new("go");
        let output =
            build.args(["build", "-o"]).arg(&path).args(arguments).arg(".").current_dir(source).output();
        let output = output.expect("run go");
        assert!(output.status.success(), "{build:?}: {}", String::from_utf8_lossy(&output.stderr));
        Some(Program { path, _dir: dir })
    }

    /// The program's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}
