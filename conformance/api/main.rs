//! Our CRI is the published one: the descriptor this workspace was built with is compared to that of the
//! Go module k8s.io/cri-api by `descriptors/`, and that comparison is shown to notice every kind of change. What becomes
//! of each field is listed.

mod fields;

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use pinnace_conformance::go::Program;
use pinnace_conformance::skip;
use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{EnumValueDescriptorProto, FileDescriptorProto, FileDescriptorSet};

/// The comparing program, built once; `None` where Go is missing or too old.
fn comparer() -> Option<&'static Path> {
    static COMPARER: OnceLock<Option<Program>> = OnceLock::new();
    COMPARER.get_or_init(|| Program::build("descriptors")).as_ref().map(Program::path)
}

/// What the program says about an encoded `FileDescriptorSet`: its exit status and its lines.
fn compare(comparer: &Path, descriptors: &[u8]) -> (Option<i32>, String) {
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    std::fs::write(file.path(), descriptors).expect("write descriptors");
    let output = Command::new(comparer).arg(file.path()).output().expect("run the comparison");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn descriptor_equals_the_published_one() {
    let Some(comparer) = comparer() else {
        return skip("descriptor_equals_the_published_one", "Go 1.21 or newer is not installed");
    };
    let (status, text) = compare(comparer, pinnace_cri_api::DESCRIPTORS);
    assert_eq!(status, Some(0), "{text}");
}

#[test]
fn comparison_notices_every_kind_of_change() {
    let Some(comparer) = comparer() else {
        return skip("comparison_notices_every_kind_of_change", "Go 1.21 or newer is not installed");
    };
    type Change = fn(&mut FileDescriptorProto);
    let changes: [(&str, Change); 8] = [
        ("only ours:      field runtime.v1.Mount.readonly = 99", |f| {
            field(f, "Mount", "readonly").number = Some(99)
        }),
        ("only ours:      field runtime.v1.Mount.read_only = 3", |f| {
            let field = field(f, "Mount", "readonly");
            (field.name, field.json_name) = (Some("read_only".into()), None);
        }),
        ("only ours:      field runtime.v1.Mount.readonly = 3: optional int32", |f| {
            field(f, "Mount", "readonly").set_type(Type::Int32)
        }),
        ("only ours:      field runtime.v1.Mount.mount_options = 11: optional string", |f| {
            field(f, "Mount", "mount_options").set_label(Label::Optional);
        }),
        ("only published: field runtime.v1.ContainerConfig.stop_signal", |f| {
            message(f, "ContainerConfig").field.retain(|field| field.name() != "stop_signal");
        }),
        ("only ours:      message runtime.v1.RestoredContainers", |f| {
            let mut copy = message(f, "RestoredContainer").clone();
            copy.name = Some("RestoredContainers".into());
            f.message_type.push(copy);
        }),
        ("only ours:      value runtime.v1.NamespaceMode.FRIEND", |f| {
            let modes = f.enum_type.iter_mut().find(|e| e.name() == "NamespaceMode").expect("NamespaceMode");
            modes.value.push(EnumValueDescriptorProto {
                name: Some("FRIEND".into()),
                number: Some(4),
                options: None,
            });
        }),
        ("only published: rpc runtime.v1.RuntimeService.GetContainerEvents", |f| {
            let methods = f.service.iter_mut().flat_map(|s| &mut s.method);
            let events = methods.into_iter().find(|m| m.name() == "GetContainerEvents").expect("method");
            events.server_streaming = Some(false);
        }),
    ];
    for (expected, change) in changes {
        let mut set = FileDescriptorSet::decode(pinnace_cri_api::DESCRIPTORS).expect("decode descriptors");
        change(&mut set.file[0]);
        let (status, text) = compare(comparer, &set.encode_to_vec());
        assert_eq!(status, Some(1), "{expected}: {text}");
        assert!(text.contains(expected), "{expected} is not named in:\n{text}");
    }
}

fn message<'a>(file: &'a mut FileDescriptorProto, name: &str) -> &'a mut prost_types::DescriptorProto {
    file.message_type.iter_mut().find(|m| m.name() == name).expect("message exists")
}

fn field<'a>(
    file: &'a mut FileDescriptorProto,
    of: &str,
    name: &str,
) -> &'a mut prost_types::FieldDescriptorProto {
    message(file, of).field.iter_mut().find(|f| f.name() == name).expect("field exists")
}
