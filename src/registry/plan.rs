//! From a reference to the servers that are asked, in order, each with what it may be told.
//!
//! Two kinds of configuration are honoured together, `registries.conf` first because it knows repositories and not just
//! hosts:
//!
//! ```text
//! registries.conf   the longest matching prefix: blocked? mirrors in order, then the location
//!      │ each of them is host[:port]/path
//! certs.d           a mirror: how its host is spoken to (CA, client certificate, headers)
//!                   the location: the mirrors of that host in order, then the host itself
//! ```
//!
//! Credentials, the first that applies: those of the caller, for the registry of the reference, or for the server that they
//! name; the auth files, by the name of the server and the repository there.

use std::path::PathBuf;

use crate::auth::{Auth, Secret};
use crate::explain::Note;
use crate::hosts::{Endpoint, Error, Hosts};
use crate::registries::{Place, Registries};
use crate::{Reference, auth_file};

/// The node's configuration of registries. Files are read anew for each plan.
#[derive(Clone, Debug, Default)]
pub(crate) struct Node {
    pub(crate) hosts: Hosts,
    pub(crate) registries_files: Vec<PathBuf>,
    pub(crate) auth_files: Vec<PathBuf>,
    /// Registries (`host[:port]`, exactly) that need not prove who they are.
    pub(crate) insecure: Vec<String>,
}

/// What a pull will do.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) servers: Vec<Planned>,
    pub(crate) notes: Vec<Note>,
}

/// One server in a plan.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) endpoint: Endpoint,
    /// The repository there.
    pub(crate) path: String,
    pub(crate) credentials: Option<Credentials>,
}

/// A secret that a server may see, and whose word that is.
#[derive(Debug)]
pub(crate) struct Credentials {
    pub(crate) secret: Secret,
    /// The file and its entry; nothing if they came with the request.
    pub(crate) from: Option<(PathBuf, String)>,
}

impl Node {
    /// What a name without a registry means, and the file that says so.
    pub(crate) fn expand(&self, name: &str) -> Result<Option<(String, PathBuf)>, Error> {
        let Some(registries) = Registries::read(&self.registries_files)? else { return Ok(None) };
        Ok(registries.expand(name)?.map(|(long, file)| (long, file.to_owned())))
    }

    pub(crate) fn plan(&self, reference: &Reference, auth: Option<&Auth>) -> Result<Plan, Error> {
        let mut plan = Plan { servers: Vec::new(), notes: Vec::new() };
        let registries = Registries::read(&self.registries_files)?;
        let mut location = Place { reference: reference.clone(), insecure: false };
        match registries.as_ref().and_then(|registries| registries.find(reference)) {
            Some(table) => {
                table.require_allowed()?;
                plan.notes.push(Note::file(&table.file, format!("the prefix {:?} matches", table.prefix)));
                for mirror in table.mirrors(reference)? {
                    let note = format!("mirror {}", mirror.reference);
                    plan.notes.push(Note::file(&table.file, note));
                    self.add_mirror(&mirror, &table.file, auth, &mut plan)?;
                }
                location = table.location(reference)?;
                if location.reference != *reference {
                    plan.notes.push(Note::file(&table.file, format!("it is at {}", location.reference)));
                }
            }
            None if registries.is_some() => {
                plan.notes.push(Note::own("no prefix of registries.conf matches".to_owned()));
            }
            None => plan.notes.push(Note::own("there is no registries.conf".to_owned())),
        }
        self.add_location(&location, reference, auth, &mut plan)?;
        Ok(plan)
    }

    fn add_mirror(
        &self,
        mirror: &Place,
        file: &std::path::Path,
        auth: Option<&Auth>,
        plan: &mut Plan,
    ) -> Result<(), Error> {
        let registry = mirror.reference.registry();
        for mut endpoint in self.hosts.endpoints(registry)? {
            // Mirrors of the mirror are for those who name it.
            if !endpoint.is_upstream {
                continue;
            }
            endpoint.is_upstream = false;
            endpoint.decided_by = Some(file.to_owned());
            for endpoint in self.secured(endpoint, registry, mirror.insecure) {
                let credentials =
                    self.credentials(&endpoint, registry, mirror.reference.path(), None, auth)?;
                plan.servers.push(Planned {
                    endpoint,
                    path: mirror.reference.path().to_owned(),
                    credentials,
                });
            }
        }
        Ok(())
    }

    fn add_location(
        &self,
        location: &Place,
        asked: &Reference,
        auth: Option<&Auth>,
        plan: &mut Plan,
    ) -> Result<(), Error> {
        let registry = location.reference.registry();
        let path = location.reference.path();
        for endpoint in self.hosts.endpoints(registry)? {
            match &endpoint.decided_by {
                Some(file) => {
                    let role = if endpoint.is_upstream { "server" } else { "mirror" };
                    plan.notes.push(Note::file(file, format!("{role} {}", endpoint.origin)));
                }
                None => plan.notes.push(Note::own(format!("server {}", endpoint.origin))),
            }
            let servers = if endpoint.is_upstream {
                self.secured(endpoint, registry, location.insecure)
            } else {
                vec![endpoint]
            };
            for endpoint in servers {
                let own = endpoint.is_upstream && registry == asked.registry();
                let authority = endpoint.origin.authority();
                let name = if endpoint.is_upstream { registry } else { &authority };
                let own = own.then_some(asked.registry());
                let credentials = self.credentials(&endpoint, name, path, own, auth)?;
                plan.servers.push(Planned { endpoint, path: path.to_owned(), credentials });
            }
        }
        Ok(())
    }

    fn secured(&self, endpoint: Endpoint, registry: &str, insecure: bool) -> Vec<Endpoint> {
        if insecure || self.insecure.iter().any(|insecure| insecure == registry) {
            endpoint.insecure()
        } else {
            vec![endpoint]
        }
    }

    /// What a server may see. The caller's secret is for the registry of the reference (`own`); any other server has to be
    /// named by the secret.
    fn credentials(
        &self,
        endpoint: &Endpoint,
        name: &str,
        path: &str,
        own: Option<&str>,
        auth: Option<&Auth>,
    ) -> Result<Option<Credentials>, Error> {
        if let Some(auth) = auth {
            let is_for = match own {
                Some(registry) => auth.is_for(registry),
                None => auth.is_bound() && auth.is_for(name),
            };
            if is_for {
                return Ok(Some(Credentials { secret: auth.secret().clone(), from: None }));
            }
            tracing::debug!(server = %endpoint.origin, "the caller's credentials are not for this server");
        }
        let found = auth_file::find(&self.auth_files, name, path)?;
        Ok(found.map(|found| Credentials { secret: found.secret, from: Some((found.file, found.key)) }))
    }
}
