//! Generates `v1` from `proto/admin.proto`, in Rust alone: no `protoc` is needed on the building machine.

use std::error::Error;

use protox::Compiler;

fn main() -> Result<(), Box<dyn Error>> {
    println_cargo("rerun-if-changed=../../proto/admin.proto");
    let mut compiler = Compiler::new(["../../proto"])?;
    compiler.include_imports(true).include_source_info(true).open_file("admin.proto")?;
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
