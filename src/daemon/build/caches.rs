//! Directories that survive steps and builds: `RUN --mount=type=cache`.
//!
//! ```text
//! <root>/build-cache/<digest of the id>[-<number>]     a number for whoever wanted one for himself
//! ```

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};

use pinnace_build::command::Sharing;
use pinnace_store::Digest;
use tokio::sync::OwnedMutexGuard;

use crate::error::Error;
use crate::node::Node;
use crate::table::lock;

/// Caches that one step has for itself.
type Turns = Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>;
static TURNS: LazyLock<Turns> = LazyLock::new(Turns::default);

/// Where caches are.
pub(crate) fn directory(node: &Node) -> PathBuf {
    node.config.daemon.root.join("build-cache")
}

/// The place of a cache, and the turn of whoever has it alone.
pub(crate) async fn claim(node: &Node, id: &str, sharing: Sharing) -> (PathBuf, Option<OwnedMutexGuard<()>>) {
    let base = directory(node).join(Digest::sha256(id.as_bytes()).hex());
    let turn = |path: &PathBuf| Arc::clone(lock(&TURNS).entry(path.clone()).or_default());
    match sharing {
        Sharing::Shared => (base, None),
        Sharing::Locked => {
            let guard = turn(&base).lock_owned().await;
            (base, Some(guard))
        }
        Sharing::Private => {
            let mut number = 0_u32;
            loop {
                let mut path = base.clone();
                if number > 0 {
                    path.as_mut_os_string().push(format!("-{number}"));
                }
                if let Ok(guard) = turn(&path).try_lock_owned() {
                    return (path, Some(guard));
                }
                number += 1;
            }
        }
    }
}

/// Makes a cache, if it is not there yet.
pub(crate) fn make(node: &Node, path: &std::path::Path, mode: u32, uid: u32, gid: u32) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt as _;
    if path.exists() {
        return Ok(());
    }
    crate::record::make_directory(&directory(node))?;
    let fault = |op| Error::io(op, path.to_owned());
    std::fs::create_dir_all(path).map_err(fault("create"))?;
    std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(fault("set the owner of"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(fault("set the mode of"))
}
