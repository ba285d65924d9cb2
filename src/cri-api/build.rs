//! Generates `v1` from `proto/api.proto`, in Rust alone: no `protoc` is needed on the building machine.

use std::error::Error;
use std::path::Path;

use protox::Compiler;

fn main() -> Result<(), Box<dyn Error>> {
    println_cargo("rerun-if-changed=../../proto/api.proto");

    let mut compiler = Compiler::new(["../../proto"])?;
    compiler.include_imports(true).open_file("api.proto")?;

    // Encoded by the compiler itself: prost's own descriptor types drop options they do not know.
    // The comments stay out; at run time they would only be weight.
    let out = std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?;
    std::fs::write(Path::new(&out).join("descriptors.bin"), compiler.encode_file_descriptor_set())?;

    compiler.include_source_info(true);
    tonic_prost_build::configure()
        // A method this program does not know yet answers Unimplemented, which kubelet and crictl understand.
        .generate_default_stubs(true)
        // Output of a command is up to 16 MiB a stream: it travels without a copy.
        .bytes(".runtime.v1.ExecSyncResponse")
        // Holds passwords; lib.rs has a Debug that does not print them.
        .skip_debug([".runtime.v1.AuthConfig"])
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// The one thing a build script has to print.
#[allow(clippy::print_stdout)]
fn println_cargo(instruction: &str) {
    println!("cargo:{instruction}");
}
