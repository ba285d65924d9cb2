//! What instructions without a layer do to the config of an image.

use pinnace_image::{Health, Run};
use serde_json::Map;

use crate::command::{Command, Form};
use crate::expand::{self, Scope};

/// What runs commands that are not lists, unless SHELL says otherwise.
pub const DEFAULT_SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// A run config while a stage changes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draft {
    /// As it is now.
    pub run: Run,
    /// This stage has set CMD: an ENTRYPOINT that follows leaves it.
    pub own_cmd: bool,
}

impl Draft {
    /// A command line as a list.
    pub fn command_line(&self, form: &Form) -> Vec<String> {
        match form {
            Form::Exec(list) => list.clone(),
            Form::Shell(text) => self.shell().into_iter().chain([text.clone()]).collect(),
        }
    }

    /// What runs commands that are not lists.
    pub fn shell(&self) -> Vec<String> {
        if self.run.shell.is_empty() {
            DEFAULT_SHELL.iter().map(ToString::to_string).collect()
        } else {
            self.run.shell.clone()
        }
    }
}

/// Changes the config as an instruction says; `false` if the instruction is not about the config. The error says what is
/// wrong with the instruction.
pub fn apply(command: &Command, draft: &mut Draft, scope: &Scope, escape: char) -> Result<bool, String> {
    let word = |text: &str| expand::word(text, scope, escape);
    match command {
        Command::Env(pairs) => {
            // All values are of before the instruction.
            for (name, value) in pairs {
                draft.run.set_variable(&word(name)?, &word(value)?);
            }
        }
        Command::Label(pairs) => {
            for (name, value) in pairs {
                draft.run.labels.insert(word(name)?, word(value)?);
            }
        }
        Command::Cmd(form) => {
            draft.run.cmd = Some(draft.command_line(form)).filter(|line| !line.is_empty());
            draft.own_cmd = true;
        }
        Command::Entrypoint(form) => {
            draft.run.entrypoint = Some(draft.command_line(form)).filter(|line| !line.is_empty());
            if !draft.own_cmd {
                draft.run.cmd = None;
            }
        }
        Command::Expose(text) => {
            for port in expand::words(text, scope, escape)? {
                for port in ports(&port)? {
                    draft.run.exposed_ports.insert(port, Map::new());
                }
            }
        }
        Command::Volume(volumes) => {
            for volume in volumes {
                let volume = word(volume)?;
                if volume.is_empty() {
                    return Err("VOLUME specified can not be an empty string".to_owned());
                }
                draft.run.volumes.insert(volume, Map::new());
            }
        }
        Command::User(user) => draft.run.user = word(user)?,
        Command::Workdir(directory) => {
            draft.run.working_dir = absolute(&draft.run.working_dir, &word(directory)?);
        }
        Command::Shell(shell) => draft.run.shell.clone_from(shell),
        Command::StopSignal(signal) => draft.run.stop_signal = word(signal)?,
        Command::Healthcheck(health) => {
            let nanoseconds = |time: std::time::Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
            draft.run.healthcheck = Some(Health {
                test: health.test.clone(),
                interval: nanoseconds(health.interval),
                timeout: nanoseconds(health.timeout),
                start_period: nanoseconds(health.start_period),
                start_interval: nanoseconds(health.start_interval),
                retries: health.retries.into(),
            });
        }
        Command::OnBuild(text) => draft.run.on_build.push(text.clone()),
        Command::From { .. }
        | Command::Arg(_)
        | Command::Run(_)
        | Command::Copy(_)
        | Command::Maintainer(_) => {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A path, from the working directory if it is not absolute; cleaned.
pub fn absolute(directory: &str, path: &str) -> String {
    let joined = if path.starts_with('/') { path.to_owned() } else { format!("/{directory}/{path}") };
    format!("/{}", crate::ignore::clean(&joined))
}

/// `80`, `80/udp`, `8000-8002/tcp`
fn ports(text: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("invalid containerPort: {text}");
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("invalid proto: {protocol}"));
    }
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last): (u16, u16) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
    if first > last {
        return Err(wrong());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(text: &str) -> Result<Draft, String> {
        let file = crate::parse::parse(text).map_err(|error| error.message)?;
        let mut draft =
            Draft { run: Run { cmd: Some(vec!["inherited".into()]), ..Run::default() }, own_cmd: false };
        for instruction in &file.instructions {
            let command = Command::parse(instruction, file.escape).map_err(|error| error.message)?;
            let env = draft.run.env.iter().filter_map(|entry| entry.split_once('='));
            let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            apply(&command, &mut draft, &Scope { env, args: Default::default() }, file.escape)?;
        }
        Ok(draft)
    }

    #[test]
    fn the_config_says_what_was_asked_for() {
        let run = applied(
            "ENV a=1\nENV a=2 b=$a\nLABEL x=\"$a y\"\nEXPOSE 80 53/UDP 8000-8001\nVOLUME [\"/v\"]\nUSER me:$b\n\
             WORKDIR /w\nWORKDIR sub/../other\nSTOPSIGNAL SIGINT\nONBUILD RUN x",
        )
        .unwrap()
        .run;
        assert_eq!(run.env, ["a=2", "b=1"]);
        assert_eq!(run.labels["x"], "2 y");
        assert_eq!(
            run.exposed_ports.keys().collect::<Vec<_>>(),
            ["53/udp", "80/tcp", "8000/tcp", "8001/tcp"]
        );
        assert_eq!((run.user.as_str(), run.working_dir.as_str()), ("me:1", "/w/other"));
        assert_eq!(run.on_build, ["RUN x"]);
        assert!(applied("EXPOSE x").is_err());
        assert!(applied("EXPOSE 9-1").is_err());
    }

    #[test]
    fn an_entrypoint_takes_the_inherited_command_away() {
        assert_eq!(applied("ENTRYPOINT [\"e\"]").unwrap().run.cmd, None);
        assert_eq!(applied("CMD c\nENTRYPOINT e").unwrap().run.cmd.unwrap(), ["/bin/sh", "-c", "c"]);
        assert_eq!(applied("SHELL [\"s\"]\nENTRYPOINT e").unwrap().run.entrypoint.unwrap(), ["s", "e"]);
        assert_eq!(applied("ENTRYPOINT []").unwrap().run.entrypoint, None);
    }
}
