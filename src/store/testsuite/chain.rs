//! Stacks of layers: whiteouts, opaque directories, implied parents, duplicates; and random stacks
//! against a model.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

use proptest::prelude::*;

use super::archive::{Archive, Raw};
use super::view::look;
use super::{Fixture, both_forms, read};
use crate::{Access, Code, DiffId, Error, LayerForm, MountOptions, Persistence};

both_forms!(
    whiteouts_hide_lower_layers_only,
    the_last_of_duplicates_wins,
    implied_parents_look_like_below,
    the_same_layer_twice_counts_once,
    an_opaque_root_hides_all_below,
    more_layers_than_the_kernel_stacks,
    no_layers_and_views,
    volatile_snapshots_can_be_mounted_again,
    owners_are_mapped,
    random_stacks_match_the_model,
);

fn names(root: &impl AsFd) -> BTreeSet<String> {
    look(root).into_keys().filter(|path| path != ".").collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn whiteouts_hide_lower_layers_only(form: LayerForm) {
    let fixture = Fixture::new(form);
    let base = Archive::default()
        .file("a/1", b"")
        .file("b/1", b"")
        .file("c/1", b"")
        .file("d/1", b"")
        .file("e", b"old")
        .file("f/g/1", b"")
        .end();
    let top = Archive::default()
        // Opaque, with the marker after a child.
        .file("a/2", b"")
        .file("a/.wh..wh..opq", b"")
        // A whiteout and a directory of the same name, in both orders.
        .file(".wh.b", b"")
        .file("b/2", b"")
        .file("c/2", b"")
        .file(".wh.c", b"")
        // Whiteouts of a directory, of what this layer has too, of nothing.
        .file(".wh.d", b"")
        .file("e", b"new")
        .file(".wh.e", b"")
        .file(".wh.nothing", b"")
        .file("f/.wh.g", b"")
        // What aufs leaves behind.
        .file(".wh..wh.plnk/1.2", b"")
        .file(".wh..wh.aufs", b"")
        .end();
    let root = fixture.mount("k", &[&base, &top]);
    assert_eq!(
        names(&root),
        set(&["a", "a/2", "b", "b/2", "c", "c/2", "e", "f", ".wh..wh.plnk", ".wh..wh.plnk/1.2"])
    );
    assert_eq!(read(&root, "e"), b"new");
}

fn the_last_of_duplicates_wins(form: LayerForm) {
    let fixture = Fixture::new(form);
    let tar = Archive::default()
        .file("f", b"first")
        .file("f", b"second, and longer")
        .dir("d/", 0o700)
        .file("d/kept", b"1")
        .dir("d/", 0o750)
        .file("x/gone", b"1")
        .file("x", b"a file now")
        .symlink("s", "d")
        .dir("s/", 0o711)
        .file("s/not-in-d", b"1")
        .file("h1", b"linked")
        .hard_link("h2", "h1")
        .file("h1", b"alone")
        .hard_link("h2", "h2")
        .end();
    let root = fixture.mount("k", &[&tar]);
    let tree = look(&root);
    assert_eq!(names(&root), set(&["f", "d", "d/kept", "x", "s", "s/not-in-d", "h1", "h2"]));
    assert_eq!(read(&root, "f"), b"second, and longer");
    assert_eq!(tree["d"].mode, 0o750);
    assert_eq!(tree["s"].mode, 0o711);
    assert_eq!((read(&root, "h1"), read(&root, "h2")), (b"alone".to_vec(), b"linked".to_vec()));
    assert_eq!((tree["h1"].links, tree["h2"].links), (1, 1));
}

fn owned(name: &str, mode: u32, uid: u64) -> Archive {
    Archive::default().raw(&Raw { mode, uid, gid: uid, ..Raw::new(b'5', name.as_bytes()) }, b"")
}

fn implied_parents_look_like_below(form: LayerForm) {
    let mut fixture = Fixture::new(form);
    let concat = |parts: Vec<Archive>| Archive {
        bytes: parts.into_iter().flat_map(|archive| archive.bytes).collect(),
    };
    let base = concat(vec![
        owned("./", 0o711, 5),
        owned("tmp/", 0o1777, 0),
        owned("var/", 0o755, 0),
        owned("var/lib/", 0o700, 1000),
        owned("gone/", 0o777, 7),
        owned("covered/", 0o777, 7),
        owned("later/", 0o777, 7),
        Archive::default().file("var/lib/x", b"1"),
    ])
    .end();
    let middle = Archive::default()
        .file("tmp/a", b"1")
        .file("var/lib/y", b"1")
        .file(".wh.gone", b"")
        .file("covered/.wh..wh..opq", b"")
        .file("later/z", b"")
        .file("new/n", b"1")
        .end();
    let top = concat(vec![
        Archive::default().file("tmp/b", b"1").file("gone/again", b""),
        owned("later/", 0o500, 9),
    ])
    .end();
    let root = fixture.mount("k", &[&base, &middle, &top]);
    let tree = look(&root);
    let is = |path: &str| (tree[path].mode, tree[path].uid);
    assert_eq!(is("."), (0o711, 5));
    assert_eq!(is("tmp"), (0o1777, 0));
    assert_eq!(is("var"), (0o755, 0));
    assert_eq!(is("var/lib"), (0o700, 1000));
    // Removed and made anew, made opaque: what is below no longer counts.
    assert_eq!(is("gone"), (0o755, 0));
    assert_eq!(is("covered"), (0o755, 0));
    // An entry above decides.
    assert_eq!(is("later"), (0o500, 9));
    assert_eq!(is("new"), (0o755, 0));
    assert_eq!(
        names(&root),
        set(&[
            "tmp",
            "tmp/a",
            "tmp/b",
            "var",
            "var/lib",
            "var/lib/x",
            "var/lib/y",
            "gone",
            "gone/again",
            "covered",
            "later",
            "later/z",
            "new",
            "new/n"
        ])
    );
    // The fixup is shared by the containers of a chain and goes with the last one.
    let chains_dir = fixture.root().join("chains");
    let chains = || std::fs::read_dir(&chains_dir).unwrap().count();
    assert_eq!(chains(), 1);
    let layers = fixture.store.snapshots()[0].2.clone();
    fixture.store.prepare("k2", &layers).unwrap();
    assert_eq!(chains(), 1);
    drop(root);
    fixture.store.remove("k").unwrap();
    fixture.store.gc().unwrap();
    assert_eq!(chains(), 1);
    // It is made again after a boot, where it may have been torn.
    let durable = MountOptions { persistence: Persistence::Durable, ..MountOptions::default() };
    for _ in 0..2 {
        let again = fixture.store.mount("k2", &durable).unwrap();
        assert_eq!(look(&again)["tmp"].mode, 0o1777);
        drop(again);
        fixture.reboot();
    }
    fixture.store.remove("k2").unwrap();
    fixture.store.gc().unwrap();
    assert_eq!(chains(), 0);
}

fn the_same_layer_twice_counts_once(form: LayerForm) {
    let fixture = Fixture::new(form);
    let a = Archive::default().file("f", b"a").file("only-a", b"").end();
    let b = Archive::default().file("f", b"b").file(".wh.only-a", b"").end();
    let root = fixture.mount("k", &[&a, &b, &a]);
    assert_eq!(read(&root, "f"), b"a");
    assert_eq!(names(&root), set(&["f", "only-a"]));
    assert_eq!(fixture.store.layers().len(), 2);
}

fn an_opaque_root_hides_all_below(form: LayerForm) {
    let fixture = Fixture::new(form);
    let base = Archive::default().file("a", b"").file("d/b", b"").end();
    let top = Archive::default().file(".wh..wh..opq", b"").file("d/c", b"").end();
    assert_eq!(names(&fixture.mount("k", &[&base, &top])), set(&["d", "d/c"]));
}

fn more_layers_than_the_kernel_stacks(form: LayerForm) {
    // Descriptors for all of them.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum },
    )
    .unwrap();
    let mut fixture = Fixture::with(form, |options| options.durability = crate::Durability::Background);
    let lease = fixture.store.lease();
    let layers: Vec<DiffId> = (0..1000)
        .map(|index| {
            let text = index.to_string();
            let mut tar = Archive::default().file(&format!("f{index}"), b"").file("top", text.as_bytes());
            if index % 7 == 3 {
                tar = tar.file(&format!(".wh.f{}", index - 2), b"").hard_link(&format!("h{index}"), "top");
            }
            tar = match index {
                0 => owned("d/", 0o1777, 7).file("d/old", b"1").file("gone/x", b"1").file("top", b"0"),
                1 => owned("lone/", 0o700, 8),
                // A directory without entry, one with a whiteout and nothing else to merge with.
                10 => tar.file("d/below", b"2").file("lone/.wh.x", b"").file("alone/.wh.y", b""),
                590 => tar.file("d/.wh.old", b"").file("gone/.wh..wh..opq", b"").file("gone/new", b"3"),
                _ => tar,
            };
            let mut ingest = fixture.store.ingest_layer(&lease, crate::Algorithm::Sha256).unwrap();
            ingest.push(&tar.end()).unwrap();
            ingest.finish_new().unwrap().diff_id
        })
        .collect();
    let check = |store: &crate::Store, key: &str, count: usize| {
        let root = store.mount(key, &MountOptions::default()).unwrap();
        let tree = look(&root);
        let last = (count - 1).to_string();
        assert_eq!(read(&root, "top"), last.as_bytes());
        let mut expected =
            BTreeSet::from(["d", "d/below", "lone", "alone", "gone", "top"].map(str::to_owned));
        expected.extend((2..count).map(|index| format!("f{index}")));
        for index in (0..count).filter(|index| index % 7 == 3) {
            expected.remove(&format!("f{}", index - 2));
            expected.insert(format!("h{index}"));
            assert_eq!(read(&root, &format!("h{index}")), index.to_string().as_bytes());
        }
        expected.insert(if count > 590 { "gone/new" } else { "gone/x" }.to_owned());
        if count <= 590 {
            expected.insert("d/old".to_owned());
        }
        assert_eq!(names(&root), expected, "{count} layers");
        assert_eq!((tree["d"].mode, tree["d"].uid), (0o1777, 7));
        assert_eq!((tree["lone"].mode, tree["lone"].uid), (0o700, 8));
        rustix::fs::mkdirat(&root, "written", 0o755.into()).unwrap();
    };
    for count in [500, 600] {
        let key = format!("k{count}");
        fixture.store.prepare(&key, &layers[..count]).unwrap();
        check(&fixture.store, &key, count);
        fixture.store.remove(&key).unwrap();
    }
    // What it takes is made again after a start, shared, and collected with the last snapshot.
    fixture.store.prepare("a", &layers[..600]).unwrap();
    drop(lease);
    fixture.reopen();
    let lease = fixture.store.lease();
    assert!(layers.iter().all(|layer| lease.hold_layer(layer).is_some()));
    check(&fixture.store, "a", 600);
    fixture.store.remove("a").unwrap();
    fixture.store.gc().unwrap();
    assert_eq!(std::fs::read_dir(fixture.root().join("chains")).unwrap().count(), 0);
    // There is an end to it where layers are unpacked, and none that matters elsewhere.
    let outcome = fixture.store.prepare("all", &layers);
    match form {
        LayerForm::TarErofs => outcome.unwrap(),
        LayerForm::Directory => {
            let error = outcome.unwrap_err();
            assert!(matches!(error, Error::TooManyLayers { count: 1000, limit: 997 }), "{error:?}");
            assert!(!fixture.store.has_snapshot("all"));
        }
    }
}

fn no_layers_and_views(form: LayerForm) {
    let fixture = Fixture::new(form);
    fixture.store.prepare("scratch", &[]).unwrap();
    let root = fixture.store.mount("scratch", &MountOptions::default()).unwrap();
    assert_eq!(names(&root), set(&[]));
    rustix::fs::mkdirat(&root, "made", 0o755.into()).unwrap();
    let a = fixture.ingest(&Archive::default().file("a", b"1").file("d/x", b"").end()).unwrap().diff_id;
    let b = fixture.ingest(&Archive::default().file("b", b"2").file("d/.wh.x", b"").end()).unwrap().diff_id;
    // One layer with a whiteout in it, and nothing below: the whiteout does not show.
    fixture.store.view("v1", &[b]).unwrap();
    fixture.store.view("v2", &[a, b]).unwrap();
    let one = fixture.store.mount("v1", &MountOptions::default()).unwrap();
    let two = fixture.store.mount("v2", &MountOptions::default()).unwrap();
    assert_eq!(names(&one), set(&["b", "d"]));
    assert_eq!(names(&two), set(&["a", "b", "d"]));
    for view in [&one, &two] {
        let error = rustix::fs::mkdirat(view, "no", 0o755.into()).unwrap_err();
        assert_eq!(error, rustix::io::Errno::ROFS);
    }
    assert_eq!(fixture.store.usage("v1").unwrap(), crate::Usage::default());
    fixture.store.prepare("ro", &[a]).unwrap();
    let options = MountOptions { access: Access::ReadOnly, ..MountOptions::default() };
    let root = fixture.store.mount("ro", &options).unwrap();
    assert_eq!(rustix::fs::mkdirat(&root, "no", 0o755.into()).unwrap_err(), rustix::io::Errno::ROFS);
    for key in ["", ".", "..", "a/b", ".hidden", "nul\0", &"k".repeat(129), "sp ace"] {
        assert!(matches!(fixture.store.prepare(key, &[a]), Err(Error::BadKey(_))), "{key:?}");
        assert!(fixture.store.remove(key).is_err(), "{key:?}");
    }
    assert_eq!(fixture.store.prepare("ro", &[a]).unwrap_err().code(), Code::AlreadyExists);
    let absent = DiffId::new(crate::Digest::sha256(b"absent"));
    assert_eq!(fixture.store.prepare("x", &[a, absent]).unwrap_err().code(), Code::NotFound);
    assert!(!fixture.store.has_snapshot("x"));
}

fn volatile_snapshots_can_be_mounted_again(form: LayerForm) {
    let mut fixture = Fixture::new(form);
    let layer = fixture.ingest(&Archive::default().file("a", b"1").end()).unwrap().diff_id;
    fixture.store.prepare("k", &[layer]).unwrap();
    let volatile = MountOptions::default();
    for round in 0..3 {
        let root = fixture.store.mount("k", &volatile).unwrap();
        rustix::fs::mkdirat(&root, format!("d{round}"), 0o755.into()).unwrap();
        assert_eq!(names(&root).len(), 2 + round);
        drop(root);
        fixture.reopen();
    }
    assert_eq!(fixture.store.usage("k").unwrap().inodes, 4);
    // After a boot what was written without flushing is not to be trusted.
    fixture.reboot();
    let error = fixture.store.mount("k", &volatile).unwrap_err();
    assert!(matches!(error, Error::StaleVolatile(_)), "{error:?}");
    assert_eq!(error.code(), Code::DataLoss);
    assert!(fixture.store.remove("k").unwrap());
    // A durable one is.
    let durable = MountOptions { persistence: Persistence::Durable, ..MountOptions::default() };
    fixture.store.prepare("k", &[layer]).unwrap();
    drop(fixture.store.mount("k", &durable).unwrap());
    fixture.reboot();
    assert_eq!(read(&fixture.store.mount("k", &durable).unwrap(), "a"), b"1");
}

/// A user namespace that maps 0..65536 to 100000.., held by a process that sleeps.
struct UserNamespace {
    child: std::process::Child,
    file: std::fs::File,
}

impl UserNamespace {
    fn new() -> Self {
        let child = std::process::Command::new("unshare").args(["--user", "sleep", "1000"]).spawn().unwrap();
        let proc = format!("/proc/{}", child.id());
        let own = std::fs::read_link("/proc/self/ns/user").unwrap();
        while std::fs::read_link(format!("{proc}/ns/user")).unwrap() == own {
            std::thread::yield_now();
        }
        for map in ["uid_map", "gid_map"] {
            std::fs::write(format!("{proc}/{map}"), "0 100000 65536").unwrap();
        }
        let file = std::fs::File::open(format!("{proc}/ns/user")).unwrap();
        Self { child, file }
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn owners_are_mapped(form: LayerForm) {
    let fixture = Fixture::new(form);
    let namespace = UserNamespace::new();
    let mut tar = owned("./", 0o1755, 3);
    tar.bytes.extend(owned("d/", 0o700, 1000).file("d/f", b"1").bytes);
    let base = fixture.ingest(&tar.end()).unwrap().diff_id;
    let top = fixture.ingest(&Archive::default().file("d/g", b"2").end()).unwrap().diff_id;
    fixture.store.prepare("k", &[base, top]).unwrap();
    let options = MountOptions { user_namespace: Some(namespace.file.as_fd()), ..MountOptions::default() };
    let root = fixture.store.mount("k", &options).unwrap();
    let tree = look(&root);
    assert_eq!((tree["."].uid, tree["."].gid, tree["."].mode), (100_003, 100_003, 0o1755));
    assert_eq!((tree["d"].uid, tree["d"].mode), (101_000, 0o700));
    assert_eq!((tree["d/f"].uid, tree["d/g"].uid), (100_000, 100_000));
    drop(root);
    // The layers themselves are as before.
    fixture.store.prepare("plain", &[base, top]).unwrap();
    let plain = fixture.store.mount("plain", &MountOptions::default()).unwrap();
    assert_eq!((look(&plain)["."].uid, look(&plain)["d"].uid), (3, 1000));
    // Mounting again keeps what is there.
    assert_eq!(look(&fixture.store.mount("k", &options).unwrap())["."].uid, 100_003);
    fixture.store.prepare("empty", &[]).unwrap();
    assert_eq!(look(&fixture.store.mount("empty", &options).unwrap())["."].uid, 100_000);
}

#[derive(Clone, Debug)]
enum Op {
    File(Vec<usize>, u8),
    Dir(Vec<usize>, u32),
    Whiteout(Vec<usize>),
    Opaque(Vec<usize>),
    HardLink(Vec<usize>, Vec<usize>),
}

fn op() -> impl Strategy<Value = Op> {
    let path = || prop::collection::vec(0..4_usize, 1..4);
    prop_oneof![
        4 => (path(), any::<u8>()).prop_map(|(path, byte)| Op::File(path, byte)),
        3 => (path(), 0..0o1000_u32).prop_map(|(path, mode)| Op::Dir(path, mode)),
        3 => path().prop_map(Op::Whiteout),
        1 => prop::collection::vec(0..4_usize, 0..3).prop_map(Op::Opaque),
        1 => (path(), path()).prop_map(|(path, target)| Op::HardLink(path, target)),
    ]
}

fn spelled(path: &[usize]) -> String {
    path.iter().map(|part| ["a", "b", "c.d", "e-f"][*part]).collect::<Vec<_>>().join("/")
}

/// A file of the model: its content, or a directory's mode if an entry said it.
#[derive(Clone, Debug, PartialEq)]
enum Node {
    File(u8),
    Dir(Option<u32>),
}

type Model = BTreeMap<String, Node>;

fn cut(model: &mut Model, path: &str) {
    model.retain(|known, _| known != path && !known.starts_with(&format!("{path}/")));
}

fn parents(path: &str) -> Vec<String> {
    path.match_indices('/').map(|(slash, _)| path[..slash].to_owned()).collect()
}

/// Adds the entry to one layer's model, or `None` if the archive would be refused.
fn put(model: &mut Model, path: &str, node: Node) -> Option<()> {
    for parent in parents(path) {
        match model.get(&parent) {
            Some(Node::File(_)) => return None,
            Some(Node::Dir(_)) => {}
            None => drop(model.insert(parent, Node::Dir(None))),
        }
    }
    match (&node, model.get(path)) {
        (Node::Dir(_), Some(Node::Dir(_))) => {}
        _ => cut(model, path),
    }
    model.insert(path.to_owned(), node);
    Some(())
}

/// One layer as an archive, and what it means: its files, its whiteouts, its opaque directories.
fn layer(ops: &[Op]) -> (Vec<u8>, Model, BTreeSet<String>, BTreeSet<String>) {
    let mut archive = Archive::default();
    let (mut model, mut whiteouts, mut opaques) = (Model::new(), BTreeSet::new(), BTreeSet::new());
    for op in ops {
        let before = (model.clone(), archive.clone());
        let done = match op {
            Op::File(path, byte) => {
                archive = archive.file(&spelled(path), &[*byte; 3]);
                put(&mut model, &spelled(path), Node::File(*byte))
            }
            Op::Dir(path, mode) => {
                archive = archive.dir(&format!("{}/", spelled(path)), *mode);
                put(&mut model, &spelled(path), Node::Dir(Some(*mode)))
            }
            Op::Whiteout(path) => {
                let (base, parent) = path.split_last().unwrap();
                let parent = spelled(parent);
                let prefix = if parent.is_empty() { String::new() } else { format!("{parent}/") };
                archive = archive.file(&format!("{prefix}.wh.{}", spelled(&[*base])), b"");
                let done = put(&mut model, &format!("{prefix}probe"), Node::File(0));
                cut(&mut model, &format!("{prefix}probe"));
                done.inspect(|()| {
                    whiteouts.insert(spelled(path));
                })
            }
            Op::Opaque(path) => {
                let dir = spelled(path);
                let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
                archive = archive.file(&format!("{prefix}.wh..wh..opq"), b"");
                let done = put(&mut model, &format!("{prefix}probe"), Node::File(0));
                cut(&mut model, &format!("{prefix}probe"));
                done.inspect(|()| {
                    opaques.insert(dir);
                })
            }
            Op::HardLink(path, target) => match model.get(&spelled(target)).cloned() {
                Some(Node::File(byte)) if !spelled(target).starts_with(&format!("{}/", spelled(path))) => {
                    archive = archive.hard_link(&spelled(path), &spelled(target));
                    put(&mut model, &spelled(path), Node::File(byte))
                }
                _ => None,
            },
        };
        if done.is_none() {
            (model, archive) = before;
        }
        // A directory that is replaced takes its marks along.
        let still = |path: &String| {
            parents(path).iter().all(|parent| matches!(model.get(parent), Some(Node::Dir(_))))
        };
        whiteouts.retain(still);
        opaques.retain(|dir| dir.is_empty() || matches!(model.get(dir), Some(Node::Dir(_))));
    }
    (archive.end(), model, whiteouts, opaques)
}

fn random_stacks_match_the_model(form: LayerForm) {
    let fixture = Fixture::with(form, |options| options.durability = crate::Durability::Background);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let rounds = std::cell::Cell::new(0);
    let layers = prop::collection::vec(prop::collection::vec(op(), 1..14), 1..5);
    runner
        .run(&layers, |layers| {
            let key = format!("round{}", rounds.replace(rounds.get() + 1));
            let mut merged = Model::new();
            let mut ids = Vec::new();
            let mut tars = BTreeSet::new();
            for ops in &layers {
                let (tar, model, whiteouts, opaques) = layer(ops);
                ids.push(fixture.ingest(&tar).unwrap().diff_id);
                // The model does not know the rule for the same layer twice.
                prop_assume!(tars.insert(tar));
                for hidden in &whiteouts {
                    cut(&mut merged, hidden);
                }
                for dir in &opaques {
                    if dir.is_empty() { merged.clear() } else { cut(&mut merged, dir) }
                }
                for (path, node) in &model {
                    match (node, merged.get(path)) {
                        (Node::Dir(None), Some(Node::Dir(_))) => continue,
                        (Node::Dir(_), Some(Node::Dir(_))) => {}
                        _ => cut(&mut merged, path),
                    }
                    merged.insert(path.clone(), node.clone());
                }
            }
            fixture.store.prepare(&key, &ids).unwrap();
            let root = fixture.store.mount(&key, &MountOptions::default()).unwrap();
            let seen: BTreeMap<String, Node> = look(&root)
                .into_iter()
                .filter(|(path, _)| path != ".")
                .map(|(path, file)| {
                    let node = match file.content {
                        super::view::Content::Bytes(bytes) => Node::File(bytes[0]),
                        _ => Node::Dir(Some(file.mode)),
                    };
                    (path, node)
                })
                .collect();
            let expected: BTreeMap<String, Node> = merged
                .into_iter()
                .map(|(path, node)| match node {
                    Node::Dir(mode) => (path, Node::Dir(Some(mode.unwrap_or(0o755)))),
                    file => (path, file),
                })
                .collect();
            prop_assert_eq!(seen, expected);
            drop(root);
            fixture.store.remove(&key).unwrap();
            fixture.store.gc().unwrap();
            Ok(())
        })
        .unwrap();
}
