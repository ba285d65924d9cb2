//! Dockerfiles and ignore files: people write them, and services build what strangers have written.

use std::collections::BTreeMap;

use pinnace_build::expand::{self, Scope};
use pinnace_build::ignore::Ignore;
use pinnace_build::stages::{Machine, platform_args};
use pinnace_build::{Command, Plan, parse};

use crate::Target;

const HERE: Machine<'_> = Machine { os: "linux", architecture: "amd64", variant: "" };

/// From the text to the plan, with every word expanded.
pub const DOCKERFILES: Target = Target {
    name: "dockerfiles",
    seeds: || {
        [
            "# escape=`\nARG V=1\nFROM --platform=$BUILDPLATFORM base:${V:-2} AS one\nRUN a `\n # c\n b\n",
            "FROM scratch\nRUN --mount=type=cache,target=/c --network=none <<EOF cat <<-'E2'\nx\nEOF\n\ty\n\tE2\nCMD [\"a\"]\n",
            "FROM a\nENV a=b c=\"d $a\" e=${a/b/c}\nLABEL x='y z'\nEXPOSE 80-82/udp\nHEALTHCHECK --interval=1m CMD x\n",
            "FROM a AS b\nFROM b\nCOPY --from=0 --chown=1:2 [\"x\", \"y/\"]\nADD --unpack=false z /\nONBUILD RUN q\n",
        ]
        .iter()
        .map(|text| text.as_bytes().to_vec())
        .collect()
    },
    check: |input| {
        let text = String::from_utf8_lossy(input);
        let Ok(file) = parse::parse(&text) else { return };
        let scope =
            Scope { env: BTreeMap::from([("a".to_owned(), "b c".to_owned())]), args: BTreeMap::new() };
        for instruction in &file.instructions {
            let (first, last) = instruction.lines;
            assert!(
                first >= 1 && first <= last && last <= text.split('\n').count(),
                "{:?}",
                instruction.lines
            );
            let _ = Command::parse(instruction, file.escape);
            let _ = expand::words(&instruction.rest, &scope, file.escape);
        }
        if let Ok(plan) = Plan::of(&file, &BTreeMap::new(), &platform_args(&HERE, &HERE), None) {
            assert!(plan.needed().iter().all(|index| *index <= plan.target), "a stage needs a later one");
        }
    },
};

/// `.dockerignore`, asked for paths.
pub const IGNORE_FILES: Target = Target {
    name: "ignore-files",
    seeds: || {
        ["*.md\n!a.md\n**/x\n/b/\n", "[a-c]?\\*\n", "# c\n  d  \n!**\n"]
            .iter()
            .map(|t| t.as_bytes().to_vec())
            .collect()
    },
    check: |input| {
        let Ok(ignore) = Ignore::parse(&String::from_utf8_lossy(input)) else { return };
        for path in ["a.md", "b/c/x", "d", "b"] {
            // What is below a directory that may be skipped is left out with it.
            let below = format!("{path}/below");
            if ignore.is_ignored(path) && ignore.may_skip(path) {
                assert!(ignore.is_ignored(&below), "{path} may be skipped, and {below} is wanted");
            }
        }
    },
};
