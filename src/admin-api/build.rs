//! Generates `v1` from the files of `proto/admin/`, in Rust alone: no `protoc` is needed on the building machine.

use std::error::Error;
use std::fs;

use protox::Compiler;

const ROOT: &str = "../../proto";

fn main() -> Result<(), Box<dyn Error>> {
    println_cargo("rerun-if-changed=../../proto/admin");
    let mut files = Vec::new();
    for entry in fs::read_dir(format!("{ROOT}/admin"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".proto") {
            files.push(format!("admin/{name}"));
        }
    }
    // In an order that is everybody's.
    files.sort_unstable();
    let mut compiler = Compiler::new([ROOT])?;
    compiler.include_imports(true).include_source_info(true).open_files(&files)?;
    tonic_prost_build::configure()
        .generate_default_stubs(true)
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// The one thing a build script has to print.
#[allow(clippy::print_stdout)]
fn println_cargo(instruction: &str) {
    println!("cargo:{instruction}");
}
