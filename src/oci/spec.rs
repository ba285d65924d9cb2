//! `spec`: a config.json to start from, the ordinary container with a shell.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Root};
use pinnace_spec::{Facts, defaults};

use crate::SPEC_VERSION;
use crate::state::CONFIG;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Directory to write it to
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
}

impl Arguments {
    /// `spec`.
    pub fn run(&self) -> anyhow::Result<()> {
        let mut spec = defaults::spec(&Facts::detect()?);
        spec.set_version(SPEC_VERSION.to_owned());
        let mut root = Root::default();
        root.set_path("rootfs".into()).set_readonly(Some(true));
        spec.set_root(Some(root)).set_hostname(Some("pinnace".to_owned()));
        if let Some(process) = spec.process_mut() {
            process.set_args(Some(vec!["sh".to_owned()])).set_terminal(Some(true));
            process.set_env(Some(vec![format!("PATH={}", defaults::PATH), "TERM=xterm".to_owned()]));
        }
        if let Some(linux) = spec.linux_mut() {
            let mut namespaces = linux.namespaces().clone().unwrap_or_default();
            for typ in [LinuxNamespaceType::Network, LinuxNamespaceType::Ipc, LinuxNamespaceType::Uts] {
                let mut namespace = LinuxNamespace::default();
                namespace.set_typ(typ);
                namespaces.push(namespace);
            }
            linux.set_namespaces(Some(namespaces));
        }
        let path = self.bundle.join(CONFIG);
        let text = serde_json::to_string_pretty(&spec)?;
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        file.and_then(|mut file| writeln!(file, "{text}"))
            .with_context(|| format!("write {}", path.display()))
    }
}
