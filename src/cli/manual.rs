//! `completion` and `man`: what shells and readers want to know of the program.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Command};
use clap_complete::Shell;

/// Flags of `completion`.
#[derive(Debug, Args)]
pub struct Completion {
    /// The shell: bash, elvish, fish, powershell or zsh
    shell: Shell,
}

/// Flags of `man`.
#[derive(Debug, Args)]
pub struct Man {
    /// Directory for the pages, one for each verb
    directory: PathBuf,
}

impl Completion {
    /// Prints the script.
    pub fn run(&self, mut command: Command) -> anyhow::Result<()> {
        let mut script = Vec::new();
        let name = command.get_name().to_owned();
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        Ok(io::stdout().write_all(&script)?)
    }
}

impl Man {
    /// Writes the pages.
    pub fn run(&self, command: Command) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.directory)
            .with_context(|| format!("create {}", self.directory.display()))?;
        let name = command.get_name().to_owned();
        pages(&command, &name, &self.directory)
    }
}

/// The page of a command and those of its own.
fn pages(command: &Command, name: &str, directory: &Path) -> anyhow::Result<()> {
    if command.is_hide_set() {
        return Ok(());
    }
    for own in command.get_subcommands() {
        pages(own, &format!("{name}-{}", own.get_name()), directory)?;
    }
    let mut page = Vec::new();
    // The name of a page has hyphens where the command has blanks.
    let titled = command.clone().name(name.to_owned()).bin_name(name.replace('-', " "));
    clap_mangen::Man::new(titled).render(&mut page)?;
    let path = directory.join(format!("{name}.1"));
    std::fs::write(&path, page).with_context(|| format!("write {}", path.display()))
}
