//! Stages: what each begins with, what it waits for, and which are needed.

use std::collections::{BTreeMap, BTreeSet};

use crate::command::{Command, MountKind};
use crate::error::Error;
use crate::expand::{self, Scope};
use crate::parse::{Dockerfile, Instruction};

/// What a stage begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// Nothing.
    Scratch,
    /// An image, as it was named.
    Image(String),
    /// An earlier stage.
    Stage(usize),
}

/// An instruction with its meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// As it was written.
    pub instruction: Instruction,
    /// What it means.
    pub command: Command,
}

/// A stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The name that it was given.
    pub name: Option<String>,
    /// What it begins with.
    pub base: Base,
    /// The platform that was asked for.
    pub platform: Option<String>,
    /// FROM, with its lines.
    pub from: Instruction,
    /// What follows.
    pub steps: Vec<Step>,
}

/// A Dockerfile by stages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In order.
    pub stages: Vec<Stage>,
    /// The one that is wanted.
    pub target: usize,
    /// The file's escape character.
    pub escape: char,
    /// ARGs before the first FROM: what a stage gets that declares them without a value.
    pub global: BTreeMap<String, String>,
    /// Names that an ARG declares anywhere.
    pub declared: BTreeSet<String>,
}

/// What a machine is, as `os/architecture[/variant]` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine<'a> {
    /// `linux`
    pub os: &'a str,
    /// `amd64`, `arm64`, …
    pub architecture: &'a str,
    /// `v7`, …; mostly empty.
    pub variant: &'a str,
}

impl std::fmt::Display for Machine<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// BUILDPLATFORM and its kin, by name.
pub fn platform_args(build: &Machine<'_>, target: &Machine<'_>) -> BTreeMap<String, String> {
    let mut args = BTreeMap::new();
    for (prefix, platform) in [("BUILD", build), ("TARGET", target)] {
        args.insert(format!("{prefix}PLATFORM"), platform.to_string());
        args.insert(format!("{prefix}OS"), platform.os.to_owned());
        args.insert(format!("{prefix}ARCH"), platform.architecture.to_owned());
        args.insert(format!("{prefix}VARIANT"), platform.variant.to_owned());
    }
    args
}

impl Plan {
    /// Reads the stages. `given` are the caller's build arguments, `platforms` those of [`platform_args`].
    pub fn of(
        file: &Dockerfile,
        given: &BTreeMap<String, String>,
        platforms: &BTreeMap<String, String>,
        target: Option<&str>,
    ) -> Result<Self, Error> {
        let mut stages: Vec<Stage> = Vec::new();
        let mut scope = Scope { env: BTreeMap::new(), args: platforms.clone() };
        let mut global = BTreeMap::new();
        let mut declared = BTreeSet::new();
        for instruction in &file.instructions {
            let command = Command::parse(instruction, file.escape)?;
            let wrong = |message: String| Error::at(instruction.lines, message);
            if let Command::Arg(pairs) = &command {
                declared.extend(pairs.iter().map(|(name, _)| name.clone()));
            }
            match command {
                Command::From { platform, image, name } => {
                    let word = |text: &str| expand::word(text, &scope, file.escape).map_err(wrong);
                    let image = word(&image)?;
                    if image.is_empty() {
                        return Err(wrong(
                            "base name should not be blank: a variable of it has no value".to_owned(),
                        ));
                    }
                    let platform = platform.map(|platform| word(&platform)).transpose()?;
                    let base = match stage_named(&stages, &image) {
                        _ if image == "scratch" => Base::Scratch,
                        Some(index) => Base::Stage(index),
                        None => Base::Image(image),
                    };
                    if let Some(name) = &name
                        && stages.iter().any(|stage| stage.name.as_ref() == Some(name))
                    {
                        return Err(wrong(format!("duplicate name for build stage: {name:?}")));
                    }
                    let platform = platform.filter(|platform| !platform.is_empty());
                    stages.push(Stage { name, base, platform, from: instruction.clone(), steps: Vec::new() });
                }
                command => match stages.last_mut() {
                    Some(stage) => stage.steps.push(Step { instruction: instruction.clone(), command }),
                    None => {
                        let Command::Arg(pairs) = command else {
                            let keyword = &instruction.keyword;
                            return Err(wrong(format!(
                                "no build stage in current context: {keyword} before FROM"
                            )));
                        };
                        for (name, default) in pairs {
                            let default =
                                default.map(|text| expand::word(&text, &scope, file.escape).map_err(wrong));
                            let value = given.get(&name).cloned().map(Ok).or(default).transpose()?;
                            let value = value.or_else(|| platforms.get(&name).cloned());
                            if let Some(value) = value {
                                scope.args.insert(name.clone(), value.clone());
                                global.insert(name, value);
                            }
                        }
                    }
                },
            }
        }
        let Some(last) = stages.len().checked_sub(1) else {
            return Err(Error::of_file("the Dockerfile has no FROM"));
        };
        let target = match target {
            None | Some("") => last,
            Some(text) => stage_named(&stages, text)
                .or_else(|| text.parse().ok().filter(|index| *index <= last))
                .ok_or_else(|| Error::of_file(format!("target stage {text:?} could not be found")))?,
        };
        Ok(Self { stages, target, escape: file.escape, global, declared })
    }

    /// The earlier stage that `--from` names for the stage at `index`; `None` if it is an image.
    pub fn source(&self, index: usize, from: &str) -> Option<usize> {
        let earlier = self.stages.get(..index).unwrap_or_default();
        stage_named(earlier, from).or_else(|| from.parse().ok().filter(|number| *number < index))
    }

    /// The stages that a stage waits for.
    pub fn waits_for(&self, index: usize) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let Some(stage) = self.stages.get(index) else { return found };
        if let Base::Stage(base) = stage.base {
            found.insert(base);
        }
        for step in &stage.steps {
            found.extend(sources(&step.command).into_iter().filter_map(|from| self.source(index, from)));
        }
        found
    }

    /// The stages that the target needs, itself among them.
    pub fn needed(&self) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let mut pending = vec![self.target];
        while let Some(index) = pending.pop() {
            if found.insert(index) {
                pending.extend(self.waits_for(index));
            }
        }
        found
    }

    /// What a stage is called in messages.
    pub fn label(&self, index: usize) -> String {
        let named = self.stages.get(index).and_then(|stage| stage.name.clone());
        named.unwrap_or_else(|| format!("stage-{index}"))
    }
}

/// What a command takes from elsewhere.
pub fn sources(command: &Command) -> Vec<&str> {
    match command {
        Command::Copy(copy) => copy.from.as_deref().into_iter().collect(),
        Command::Run(run) => run
            .mounts
            .iter()
            .filter_map(|mount| match &mount.kind {
                MountKind::Bind { from, .. } | MountKind::Cache { from, .. } => from.as_deref(),
                MountKind::Tmpfs { .. } | MountKind::Secret { .. } => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn stage_named(stages: &[Stage], name: &str) -> Option<usize> {
    stages
        .iter()
        .rposition(|stage| stage.name.as_deref().is_some_and(|known| known.eq_ignore_ascii_case(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Machine<'_> = Machine { os: "linux", architecture: "amd64", variant: "" };

    fn plan(text: &str, target: Option<&str>) -> Result<Plan, String> {
        let given = [("V".to_owned(), "given".to_owned())].into();
        let platforms = platform_args(&HERE, &HERE);
        let file = crate::parse::parse(text).map_err(|error| error.message)?;
        Plan::of(&file, &given, &platforms, target).map_err(|error| error.message)
    }

    #[test]
    fn only_what_is_needed_is_built() {
        let text = "ARG V=x\nFROM a:$V AS one\nFROM b AS two\nCOPY --from=one x y\nFROM two\nRUN --mount=from=0,target=/x z\n\
                    FROM c AS unused\nFROM 2\nFROM One";
        let all = plan(text, Some("2")).unwrap();
        assert_eq!(all.stages[0].base, Base::Image("a:given".into()));
        assert_eq!(all.needed().into_iter().collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(plan(text, None).unwrap().needed().into_iter().collect::<Vec<_>>(), [0, 5]);
        assert_eq!(plan(text, Some("unused")).unwrap().needed().len(), 1);
        assert!(plan(text, Some("absent")).unwrap_err().contains("absent"));
        assert_eq!(all.stages[4].base, Base::Image("2".into()), "a number names no base");
    }

    #[test]
    fn what_cannot_be_a_plan() {
        for (text, expected) in [
            ("RUN x", "before FROM"),
            ("ARG x", "no FROM"),
            ("FROM $NONE", "should not be blank"),
            ("FROM a AS x\nFROM b AS X", "duplicate name"),
            ("FROM --platform=$TARGETPLATFORM a\nFOO x", "unknown instruction"),
        ] {
            let error = plan(text, None).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
