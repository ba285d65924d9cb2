//! Instructions by their meaning. Words are still as written: what variables are is known when a stage runs.

use std::time::Duration;

use crate::error::Error;
use crate::parse::{Heredoc, Instruction};

/// A command line: a list that is executed, or a text for the shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// `["program", "argument"]`
    Exec(Vec<String>),
    /// `program argument`
    Shell(String),
}

/// An instruction by its meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// FROM
    From {
        /// `--platform`
        platform: Option<String>,
        /// An image, a stage, or `scratch`.
        image: String,
        /// `AS`, in small letters.
        name: Option<String>,
    },
    /// ARG: names and defaults.
    Arg(Vec<(String, Option<String>)>),
    /// ENV
    Env(Vec<(String, String)>),
    /// LABEL
    Label(Vec<(String, String)>),
    /// RUN
    Run(Run),
    /// COPY and ADD
    Copy(Box<Copy>),
    /// CMD
    Cmd(Form),
    /// ENTRYPOINT
    Entrypoint(Form),
    /// EXPOSE
    Expose(String),
    /// VOLUME
    Volume(Vec<String>),
    /// USER
    User(String),
    /// WORKDIR
    Workdir(String),
    /// SHELL
    Shell(Vec<String>),
    /// STOPSIGNAL
    StopSignal(String),
    /// HEALTHCHECK
    Healthcheck(Healthcheck),
    /// ONBUILD: an instruction for whoever builds on this.
    OnBuild(String),
    /// MAINTAINER
    Maintainer(String),
}

/// HEALTHCHECK
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Healthcheck {
    /// `NONE`, or `CMD` or `CMD-SHELL` and what to run.
    pub test: Vec<String>,
    /// Between two checks.
    pub interval: Duration,
    /// For one check.
    pub timeout: Duration,
    /// In which a failure does not count.
    pub start_period: Duration,
    /// Between two checks in that time.
    pub start_interval: Duration,
    /// Failures that make it unhealthy.
    pub retries: u32,
}

/// RUN
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What.
    pub form: Form,
    /// A document with a `#!` line, to be executed as it is; the form is its name then.
    pub script: Option<String>,
    /// `--mount`
    pub mounts: Vec<Mount>,
    /// `--network`
    pub network: Network,
}

/// The network of a RUN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// What the build has.
    #[default]
    Default,
    /// None but loopback.
    None,
    /// The host's.
    Host,
}

/// A mount of a RUN. Paths are as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted.
    pub kind: MountKind,
    /// Where; empty where it follows from the rest.
    pub target: String,
    /// Nothing can be written there. What is written to a bind is thrown away.
    pub read_only: bool,
    /// As written, for the key of the step.
    pub text: String,
}

/// Kinds of mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// A directory or file of the context, a stage or an image.
    Bind {
        /// A stage or image; the context without.
        from: Option<String>,
        /// Below it.
        source: String,
    },
    /// A directory that survives the step, and the build.
    Cache {
        /// Which; the target without.
        id: Option<String>,
        /// Who may have it at the same time.
        sharing: Sharing,
        /// What it begins with.
        from: Option<String>,
        /// Below that.
        source: String,
        /// Of the directory when it is made.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// Memory.
    Tmpfs {
        /// Bytes; 0 for what the kernel allows.
        size: u64,
    },
    /// Something that must not be in the image.
    Secret {
        /// Which.
        id: String,
        /// As a variable of the environment instead.
        env: Option<String>,
        /// It must be there.
        required: bool,
        /// Of the file.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

/// Who may have a cache at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// Everybody.
    #[default]
    Shared,
    /// Whoever comes second gets another one.
    Private,
    /// Whoever comes second waits.
    Locked,
}

/// COPY and ADD
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    /// ADD: archives are unpacked, URLs are fetched.
    pub add: bool,
    /// What.
    pub sources: Vec<String>,
    /// Documents that are files, by the names of their words.
    pub documents: Vec<Heredoc>,
    /// Where to.
    pub destination: String,
    /// A stage or image; the context without.
    pub from: Option<String>,
    /// Owner and group of everything.
    pub chown: Option<String>,
    /// Mode of everything.
    pub chmod: Option<String>,
    /// Does not depend on what is below.
    pub link: bool,
    /// Keeps the directories of the sources.
    pub parents: bool,
    /// Patterns that are left out.
    pub exclude: Vec<String>,
    /// Digest of what is fetched.
    pub checksum: Option<String>,
    /// Whether archives are unpacked, if that was said.
    pub unpack: Option<bool>,
}

impl Command {
    /// From an instruction. `escape` is the file's.
    pub fn parse(instruction: &Instruction, escape: char) -> Result<Self, Error> {
        let wrong = |message: String| Error::at(instruction.lines, message);
        let allowed: &[&str] = match instruction.keyword.as_str() {
            "FROM" => &["platform"],
            "RUN" => &["mount", "network", "security"],
            "COPY" => &["from", "chown", "chmod", "link", "parents", "exclude"],
            "ADD" => &["chown", "chmod", "link", "exclude", "checksum", "unpack", "keep-git-dir"],
            "HEALTHCHECK" => &["interval", "timeout", "start-period", "start-interval", "retries"],
            _ => &[],
        };
        if let Some((flag, _)) = instruction.flags.iter().find(|(flag, _)| !allowed.contains(&flag.as_str()))
        {
            return Err(wrong(format!("unknown flag: --{flag} of {}", instruction.keyword)));
        }
        let command = match instruction.keyword.as_str() {
            "FROM" => from(instruction),
            "ARG" => arg(&instruction.rest, escape),
            "ENV" => pairs("ENV", &instruction.rest, escape).map(Self::Env),
            "LABEL" => pairs("LABEL", &instruction.rest, escape).map(Self::Label),
            "RUN" => run(instruction).map(Self::Run),
            "COPY" | "ADD" => copy(instruction).map(|copy| Self::Copy(Box::new(copy))),
            "CMD" => Ok(Self::Cmd(form(&instruction.rest))),
            "ENTRYPOINT" => Ok(Self::Entrypoint(form(&instruction.rest))),
            "EXPOSE" => one("EXPOSE", &instruction.rest).map(Self::Expose),
            "VOLUME" => {
                let volumes = match form(&instruction.rest) {
                    Form::Exec(list) => list,
                    Form::Shell(text) => text.split_whitespace().map(str::to_owned).collect(),
                };
                if volumes.is_empty() || volumes.iter().any(String::is_empty) {
                    Err("VOLUME specified can not be an empty string".to_owned())
                } else {
                    Ok(Self::Volume(volumes))
                }
            }
            "USER" => one("USER", &instruction.rest).map(Self::User),
            "WORKDIR" => one("WORKDIR", &instruction.rest).map(Self::Workdir),
            "STOPSIGNAL" => one("STOPSIGNAL", &instruction.rest).map(Self::StopSignal),
            "MAINTAINER" => one("MAINTAINER", &instruction.rest).map(Self::Maintainer),
            "SHELL" => match form(&instruction.rest) {
                Form::Exec(list) if !list.is_empty() => Ok(Self::Shell(list)),
                _ => Err("SHELL requires the arguments to be in JSON form".to_owned()),
            },
            "HEALTHCHECK" => healthcheck(instruction).map(Self::Healthcheck),
            "ONBUILD" => on_build(instruction),
            other => Err(format!("unknown instruction: {other}")),
        };
        command.map_err(wrong)
    }
}

type Parsed<T> = Result<T, String>;

fn one(keyword: &str, rest: &str) -> Parsed<String> {
    if rest.is_empty() { Err(format!("{keyword} requires an argument")) } else { Ok(rest.to_owned()) }
}

/// A list of strings in JSON, or the text as it is.
pub fn form(text: &str) -> Form {
    if text.starts_with('[')
        && let Ok(list) = serde_json::from_str::<Vec<String>>(text)
    {
        return Form::Exec(list);
    }
    Form::Shell(text.to_owned())
}

fn from(instruction: &Instruction) -> Parsed<Command> {
    let words: Vec<&str> = instruction.rest.split_whitespace().collect();
    let (image, name) = match words.as_slice() {
        [image] => (image, None),
        [image, keyword, name] if keyword.eq_ignore_ascii_case("as") => {
            (image, Some(name.to_ascii_lowercase()))
        }
        _ => return Err("FROM requires either one or three arguments: FROM IMAGE [AS NAME]".to_owned()),
    };
    if let Some(name) = &name {
        let valid = name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
        if !valid {
            return Err(format!("invalid name for build stage: {name:?}"));
        }
        if name == "scratch" {
            return Err("scratch cannot be the name of a stage".to_owned());
        }
    }
    let platform = instruction.flag("platform").map(str::to_owned);
    Ok(Command::From { platform, image: (*image).to_owned(), name })
}

/// Words with their quotes, as they stand between blanks.
fn quoted_words(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let (mut current, mut quote, mut inside) = (String::new(), None, false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, c) if c.is_whitespace() => {
                if std::mem::take(&mut inside) {
                    words.push(std::mem::take(&mut current));
                }
                continue;
            }
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (None | Some('"'), c) if c == escape => {
                current.push(c);
                current.extend(chars.next());
                inside = true;
                continue;
            }
            _ => {}
        }
        inside = true;
        current.push(c);
    }
    if inside {
        words.push(current);
    }
    words
}

fn pairs(keyword: &str, rest: &str, escape: char) -> Parsed<Vec<(String, String)>> {
    let words = quoted_words(rest, escape);
    let Some(first) = words.first() else { return Err(format!("{keyword} requires at least one argument")) };
    if !first.contains('=') {
        // From before there could be several: everything after the name is the value.
        let Some((name, value)) = rest.split_once(char::is_whitespace) else {
            return Err(format!("{keyword} must have two arguments"));
        };
        return Ok(vec![(name.to_owned(), value.trim_start().to_owned())]);
    }
    words
        .iter()
        .map(|word| match word.split_once('=') {
            Some(("", _)) => Err(format!("{keyword} names can not be blank")),
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => {
                Err(format!("syntax error - can't find = in {word:?}: it must be of the form name=value"))
            }
        })
        .collect()
}

fn arg(rest: &str, escape: char) -> Parsed<Command> {
    let words = quoted_words(rest, escape);
    if words.is_empty() {
        return Err("ARG requires at least one argument".to_owned());
    }
    let pair = |word: &String| match word.split_once('=') {
        Some(("", _)) => Err("ARG names can not be blank".to_owned()),
        Some((name, value)) => Ok((name.to_owned(), Some(value.to_owned()))),
        None => Ok((word.clone(), None)),
    };
    words.iter().map(pair).collect::<Parsed<_>>().map(Command::Arg)
}

fn run(instruction: &Instruction) -> Parsed<Run> {
    if instruction.rest.is_empty() {
        return Err("RUN requires a command".to_owned());
    }
    match instruction.flag("security") {
        None | Some("sandbox") => {}
        Some(other) => return Err(format!("--security={other} is not supported: a build runs in a sandbox")),
    }
    let network = match instruction.flag("network") {
        None | Some("default") => Network::Default,
        Some("none") => Network::None,
        Some("host") => Network::Host,
        Some(other) => return Err(format!("invalid network mode: {other:?} (default, none or host)")),
    };
    let mounts = instruction.flag_values("mount").map(mount).collect::<Parsed<Vec<_>>>()?;
    let (mut form, mut script) = (form(&instruction.rest), None);
    if let (Form::Shell(text), Some(first)) = (&form, instruction.heredocs.first()) {
        let alone =
            instruction.heredocs.len() == 1 && text.starts_with("<<") && !text.contains(char::is_whitespace);
        if alone && first.content.starts_with("#!") {
            script = Some(first.content.clone());
        } else if alone {
            form = Form::Shell(first.content.clone());
        } else {
            // The shell knows documents itself.
            let mut whole = text.clone();
            for heredoc in &instruction.heredocs {
                whole.push('\n');
                whole.push_str(&heredoc.content);
                whole.push_str(&heredoc.name);
            }
            form = Form::Shell(whole);
        }
    }
    Ok(Run { form, script, mounts, network })
}

fn mount(text: &str) -> Parsed<Mount> {
    let mut kind = "bind";
    let mut options: Vec<(&str, Option<&str>)> = Vec::new();
    for field in text.split(',') {
        let (key, value) = field.split_once('=').map_or((field, None), |(key, value)| (key, Some(value)));
        match (key.trim(), value) {
            ("type", Some(value)) => kind = value,
            (key, value) => options.push((key, value)),
        }
    }
    let allowed: &[&str] = match kind {
        "bind" => &["from", "source", "rw"],
        "cache" => &["id", "sharing", "from", "source", "mode", "uid", "gid", "ro"],
        "tmpfs" => &["size"],
        "secret" => &["id", "env", "required", "mode", "uid", "gid"],
        "ssh" => return Err("mounts of type ssh are not supported".to_owned()),
        other => return Err(format!("unsupported mount type {other:?} (bind, cache, tmpfs or secret)")),
    };
    let mut get = std::collections::HashMap::new();
    for (key, value) in options {
        let key = match key {
            "target" | "dst" | "destination" => "target",
            "source" | "src" => "source",
            "rw" | "readwrite" => "rw",
            "ro" | "readonly" => "ro",
            key => key,
        };
        if key != "target" && !allowed.contains(&key) && !(kind == "bind" && key == "ro") {
            return Err(format!("unexpected key {key:?} for mount type {kind:?}"));
        }
        get.insert(key, value.unwrap_or("true"));
    }
    let truth = |key: &str| match get.get(key).copied() {
        None | Some("false" | "0") => Ok(false),
        Some("true" | "1") => Ok(true),
        Some(other) => Err(format!("invalid value for {key}: {other:?}")),
    };
    let number = |key: &str, radix: u32, default: u32| match get.get(key) {
        None => Ok(default),
        Some(text) => {
            u32::from_str_radix(text, radix).map_err(|_| format!("invalid value for {key}: {text:?}"))
        }
    };
    let text_of = |key: &str| get.get(key).map(|value| (*value).to_owned());
    let target = text_of("target").unwrap_or_default();
    if target.is_empty() && kind != "secret" {
        return Err(format!("a mount of type {kind:?} needs a target"));
    }
    let source = text_of("source").unwrap_or_default();
    let (kind, read_only) = match kind {
        "bind" => (MountKind::Bind { from: text_of("from"), source }, !truth("rw")?),
        "cache" => {
            let sharing = match get.get("sharing").copied() {
                None | Some("shared") => Sharing::Shared,
                Some("private") => Sharing::Private,
                Some("locked") => Sharing::Locked,
                Some(other) => return Err(format!("unsupported sharing value {other:?}")),
            };
            let kind = MountKind::Cache {
                id: text_of("id"),
                sharing,
                from: text_of("from"),
                source,
                mode: number("mode", 8, 0o755)?,
                uid: number("uid", 10, 0)?,
                gid: number("gid", 10, 0)?,
            };
            (kind, truth("ro")?)
        }
        "tmpfs" => {
            let size = get.get("size").map_or(Some(0), |text| bytes(text));
            (MountKind::Tmpfs { size: size.ok_or_else(|| "invalid value for size".to_owned())? }, false)
        }
        _ => {
            let file = target.rsplit('/').next().unwrap_or_default().to_owned();
            let id = text_of("id").unwrap_or(file);
            if id.is_empty() {
                return Err("a secret needs an id or a target".to_owned());
            }
            let kind = MountKind::Secret {
                id,
                env: text_of("env"),
                required: truth("required")?,
                mode: number("mode", 8, 0o400)?,
                uid: number("uid", 10, 0)?,
                gid: number("gid", 10, 0)?,
            };
            (kind, true)
        }
    };
    Ok(Mount { kind, target, read_only, text: text.to_owned() })
}

/// `64m`, `1g`, `4096`
fn bytes(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let lower = lower.trim_end_matches('b').trim_end_matches('i');
    let (digits, scale) = match lower.char_indices().last()? {
        (at, 'k') => (lower.get(..at)?, 1 << 10),
        (at, 'm') => (lower.get(..at)?, 1 << 20),
        (at, 'g') => (lower.get(..at)?, 1 << 30),
        _ => (lower, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(scale)
}

fn copy(instruction: &Instruction) -> Parsed<Copy> {
    let keyword = &instruction.keyword;
    let mut words = match form(&instruction.rest) {
        Form::Exec(list) => list,
        Form::Shell(text) => text.split_whitespace().map(str::to_owned).collect(),
    };
    let destination = words.pop().filter(|_| !words.is_empty());
    let Some(destination) = destination else {
        return Err(format!("{keyword} requires at least two arguments: what, and where to"));
    };
    let mut documents = instruction.heredocs.iter().cloned();
    let (mut sources, mut used) = (Vec::new(), Vec::new());
    for word in words {
        if word.starts_with("<<")
            && let Some(document) = documents.next()
        {
            used.push(document);
            continue;
        }
        sources.push(word);
    }
    let truth = |name: &str| match instruction.flag(name) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(format!("invalid value for --{name}: {other:?}")),
    };
    if truth("keep-git-dir")? {
        return Err("--keep-git-dir: repositories are not fetched".to_owned());
    }
    let text = |name: &str| instruction.flag(name).map(str::to_owned);
    Ok(Copy {
        add: keyword == "ADD",
        sources,
        documents: used,
        destination,
        from: text("from"),
        chown: text("chown"),
        chmod: text("chmod"),
        link: truth("link")?,
        parents: truth("parents")?,
        exclude: instruction.flag_values("exclude").map(str::to_owned).collect(),
        checksum: text("checksum"),
        unpack: instruction.flag("unpack").map(|_| truth("unpack")).transpose()?,
    })
}

fn healthcheck(instruction: &Instruction) -> Parsed<Healthcheck> {
    let (kind, rest) = instruction.rest.split_once(char::is_whitespace).unwrap_or((&instruction.rest, ""));
    if kind.eq_ignore_ascii_case("none") {
        if !rest.trim().is_empty() {
            return Err("HEALTHCHECK NONE takes no arguments".to_owned());
        }
        return Ok(Healthcheck { test: vec!["NONE".to_owned()], ..Healthcheck::default() });
    }
    if !kind.eq_ignore_ascii_case("cmd") {
        return Err(format!("unknown type {kind:?} in HEALTHCHECK (try CMD)"));
    }
    let test = match form(rest.trim()) {
        Form::Exec(list) if list.is_empty() => return Err("missing command after HEALTHCHECK CMD".to_owned()),
        Form::Exec(list) => [vec!["CMD".to_owned()], list].concat(),
        Form::Shell(text) if text.is_empty() => {
            return Err("missing command after HEALTHCHECK CMD".to_owned());
        }
        Form::Shell(text) => vec!["CMD-SHELL".to_owned(), text],
    };
    let time = |name: &str| match instruction.flag(name) {
        None => Ok(Duration::ZERO),
        Some(text) => duration(text).ok_or_else(|| format!("invalid duration for --{name}: {text:?}")),
    };
    let retries = instruction
        .flag("retries")
        .map_or(Ok(0), |text| text.parse().map_err(|_| format!("invalid value for --retries: {text:?}")))?;
    Ok(Healthcheck {
        test,
        interval: time("interval")?,
        timeout: time("timeout")?,
        start_period: time("start-period")?,
        start_interval: time("start-interval")?,
        retries,
    })
}

/// Go's durations: `1h2m3.5s`, `500ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest == "0" {
        return Some(total);
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest.get(..end)?.parse().ok()?;
        rest = rest.get(end..)?;
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match rest.get(..end)? {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        rest = rest.get(end..)?;
        total = total.checked_add(Duration::try_from_secs_f64(number * unit).ok()?)?;
    }
    (!text.is_empty()).then_some(total)
}

fn on_build(instruction: &Instruction) -> Parsed<Command> {
    let keyword = instruction.rest.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    match keyword.as_str() {
        "" => Err("ONBUILD requires an instruction".to_owned()),
        "ONBUILD" => Err("chaining ONBUILD via `ONBUILD ONBUILD` is not allowed".to_owned()),
        "FROM" | "MAINTAINER" => Err(format!("{keyword} is not allowed as an ONBUILD trigger")),
        _ => {
            let inner =
                crate::parse::parse_one(&instruction.rest, instruction.lines).map_err(|e| e.message)?;
            Command::parse(&inner, '\\').map_err(|error| error.message)?;
            Ok(Command::OnBuild(instruction.rest.clone()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::parse;

    fn command(text: &str) -> Result<Command, String> {
        let file = parse(text).map_err(|error| error.message)?;
        let instruction = file.instructions.first().ok_or("no instruction")?;
        Command::parse(instruction, file.escape).map_err(|error| error.message)
    }

    #[test]
    fn forms() {
        assert_eq!(
            command("CMD [\"a\", \"b c\"]").unwrap(),
            Command::Cmd(Form::Exec(vec!["a".into(), "b c".into()]))
        );
        assert_eq!(command("CMD ['a']").unwrap(), Command::Cmd(Form::Shell("['a']".into())));
        assert_eq!(command("SHELL x").unwrap_err(), "SHELL requires the arguments to be in JSON form");
        let env = |pairs: &[(&str, &str)]| {
            Command::Env(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
        };
        assert_eq!(
            command("ENV a=b c=\"d e\" f=g\\ h").unwrap(),
            env(&[("a", "b"), ("c", "\"d e\""), ("f", "g\\ h")])
        );
        assert_eq!(command("ENV name a value").unwrap(), env(&[("name", "a value")]));
        assert!(command("ENV a=b c").unwrap_err().contains("can't find ="));
        assert!(command("FROM a b c").is_err());
        assert!(command("COPY --nope a b").unwrap_err().contains("unknown flag: --nope"));
        assert!(command("ONBUILD FROM x").is_err());
        assert!(command("ONBUILD RUNN x").is_err());
    }

    #[test]
    fn mounts() {
        let Command::Run(run) = command(
            "RUN --mount=type=cache,target=/c,sharing=locked,mode=0700 --mount=from=b,src=/x,dst=/y,rw \
             --mount=type=secret,id=s,required --mount=type=tmpfs,target=/t,size=2m --network=none make",
        )
        .unwrap() else {
            panic!("not a RUN")
        };
        assert_eq!(run.network, Network::None);
        assert!(matches!(
            &run.mounts[0].kind,
            MountKind::Cache { sharing: Sharing::Locked, mode: 0o700, .. }
        ));
        assert_eq!(run.mounts[1].kind, MountKind::Bind { from: Some("b".into()), source: "/x".into() });
        assert!(!run.mounts[1].read_only);
        assert!(matches!(&run.mounts[2].kind, MountKind::Secret { required: true, mode: 0o400, .. }));
        assert_eq!(run.mounts[3].kind, MountKind::Tmpfs { size: 2 << 20 });
        for wrong in
            ["type=cache", "type=ssh", "type=x,target=/", "target=/t,nope=1", "type=cache,target=/c,mode=9"]
        {
            assert!(command(&format!("RUN --mount={wrong} x")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn documents_become_commands() {
        let run = |text: &str| match command(text).unwrap() {
            Command::Run(run) => run,
            other => panic!("{other:?}"),
        };
        assert_eq!(run("RUN <<E\na\nb\nE").form, Form::Shell("a\nb\n".into()));
        assert_eq!(run("RUN <<E\n#!/bin/x\nE").script.unwrap(), "#!/bin/x\n");
        assert_eq!(run("RUN cat <<E >f\na\nE").form, Form::Shell("cat <<E >f\na\nE".into()));
        let Command::Copy(copy) = command("COPY <<one two <<'three' /d/\n1\none\n3\nthree").unwrap() else {
            panic!()
        };
        assert_eq!(copy.sources, ["two"]);
        assert_eq!(copy.documents.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["one", "three"]);
    }

    #[test]
    fn checks_of_health() {
        let Command::Healthcheck(health) =
            command("HEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 CMD curl x").unwrap()
        else {
            panic!("not a HEALTHCHECK")
        };
        assert_eq!(health.test, ["CMD-SHELL", "curl x"]);
        assert_eq!((health.interval, health.timeout), (Duration::from_secs(90), Duration::from_millis(500)));
        assert!(command("HEALTHCHECK --interval=x CMD y").is_err());
        assert!(command("HEALTHCHECK FOO").is_err());
    }
}
