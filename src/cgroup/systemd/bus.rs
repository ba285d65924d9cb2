//! [`Systemd`]: the conversation with systemd over the system bus.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use oci_spec::runtime::LinuxResources;
use tokio::sync::oneshot;
use zbus::connection::Builder;
use zbus::message::{Message, Type};
use zbus::{Connection, DynamicType, MatchRule, MessageStream, OwnedObjectPath, fdo};

use super::properties::{self, Property};
use super::unit::{Scope, slice_of};
use crate::cgroup::Cgroup;
use crate::error::{CgroupError, Result};
use crate::path::CgroupPath;

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const OBJECT: &str = "/org/freedesktop/systemd1";
/// How long a reload or reexec, or a restart of the bus, is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long one call or job may take. A reload of a large machine takes seconds, in which nothing is answered.
const CALL: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);

/// Jobs whose end somebody waits for, by the unit; told the result's name.
type Jobs = Arc<Mutex<HashMap<String, oneshot::Sender<String>>>>;

/// The service manager. Needs a tokio runtime.
#[derive(Debug, Default)]
pub struct Systemd {
    link: tokio::sync::Mutex<Option<Link>>,
    jobs: Jobs,
}

#[derive(Clone, Debug)]
struct Link {
    connection: Connection,
    version: u32,
}

impl Systemd {
    /// Nothing is sent before the first call.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a cgroup with a process in it the scope that its path says, with these limits; returns when systemd has done
    /// so. Afterwards [`Cgroup::update`] writes what systemd has no property for.
    pub async fn adopt(
        &self,
        cgroup: &Cgroup,
        resources: &LinuxResources,
        pid: u32,
        description: &str,
    ) -> Result<()> {
        let scope = Scope::of(cgroup.path()).ok_or_else(|| not_a_unit(cgroup.path()))?;
        let settings = cgroup.settings(resources)?;
        let started = Instant::now();
        loop {
            let link = self.link(scope.name()).await?;
            let mut limits = properties::limits(&settings, link.version)?;
            properties::without_defaults(&mut limits);
            let mut given = properties::scope(&scope, description, pid);
            given.append(&mut limits);
            let ended = self.expect(scope.name());
            let no_units: Vec<(&str, Vec<Property>)> = Vec::new();
            let body = (scope.name(), "fail", given, no_units);
            let error = match link.call("StartTransientUnit", &body).await {
                // A call before, whose answer was lost, has done it.
                Err(error) if is_named(&error, "org.freedesktop.systemd1.UnitExists") => {
                    self.forget(scope.name());
                    return self.set(scope.name(), cgroup, resources).await;
                }
                Err(error) => error,
                Ok(_) => match tokio::time::timeout(CALL, ended).await {
                    Ok(Ok(result)) if result == "done" => return Ok(()),
                    Ok(Ok(result)) => {
                        return Err(failed("start", scope.name(), format!("the job's result is {result}")));
                    }
                    // The connection ended.
                    Ok(Err(_)) => zbus::Error::InvalidReply,
                    Err(_) => {
                        self.forget(scope.name());
                        return Err(CgroupError::TimedOut {
                            path: scope.name().into(),
                            state: "started by systemd",
                            waited: CALL,
                        });
                    }
                },
            };
            self.forget(scope.name());
            self.broken("start", scope.name(), &link, error, started).await?;
        }
    }

    /// Changes a scope's properties to limits that have been written.
    pub async fn update(&self, cgroup: &Cgroup, resources: &LinuxResources) -> Result<()> {
        let scope = Scope::of(cgroup.path()).ok_or_else(|| not_a_unit(cgroup.path()))?;
        self.set(scope.name(), cgroup, resources).await
    }

    /// Ends a slice that nothing is in any more, unless it is unknown.
    pub async fn stop_slice(&self, path: &CgroupPath) -> Result<()> {
        let Some(slice) = slice_of(path).filter(|_| !path.is_root()) else { return Ok(()) };
        match self.call("stop", "StopUnit", &slice, &(slice.as_str(), "replace")).await {
            Err(CgroupError::NotFound { .. }) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn set(&self, unit: &str, cgroup: &Cgroup, resources: &LinuxResources) -> Result<()> {
        let version = self.link(unit).await?.version;
        let properties = properties::limits(&cgroup.settings(resources)?, version)?;
        // For the life of this unit, as everything about it.
        let runtime = true;
        match self.call("change", "SetUnitProperties", unit, &(unit, runtime, properties)).await {
            // It has ended.
            Err(CgroupError::NotFound { .. }) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// One call, repeated while systemd or the bus is away.
    async fn call<B>(&self, operation: &'static str, method: &str, unit: &str, body: &B) -> Result<Message>
    where
        B: serde::Serialize + DynamicType + Sync,
    {
        let started = Instant::now();
        loop {
            let link = self.link(unit).await?;
            match link.call(method, body).await {
                Ok(reply) => return Ok(reply),
                Err(error) if is_named(&error, "org.freedesktop.systemd1.NoSuchUnit") => {
                    return Err(CgroupError::NotFound { path: unit.to_owned() });
                }
                Err(error) => self.broken(operation, unit, &link, error, started).await?,
            }
        }
    }

    /// Returns when it is worth trying again.
    async fn broken(
        &self,
        operation: &'static str,
        unit: &str,
        link: &Link,
        error: zbus::Error,
        started: Instant,
    ) -> Result<()> {
        if !is_lost(&error) || started.elapsed() > PATIENCE {
            return Err(failed(operation, unit, error.to_string()));
        }
        tracing::debug!(unit, %error, "systemd is away");
        let mut current = self.link.lock().await;
        current.take_if(|current| current.connection.unique_name() == link.connection.unique_name());
        drop(current);
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    /// The connection, made when there is none.
    async fn link(&self, unit: &str) -> Result<Link> {
        let mut current = self.link.lock().await;
        if let Some(link) = current.as_ref().filter(|link| !link.connection.is_closed()) {
            return Ok(link.clone());
        }
        let started = Instant::now();
        loop {
            match self.connect().await {
                Ok(link) => {
                    *current = Some(link.clone());
                    return Ok(link);
                }
                Err(error) if started.elapsed() > PATIENCE => {
                    return Err(failed("reach systemd for", unit, error.to_string()));
                }
                Err(error) => tracing::debug!(%error, "no connection to systemd"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn connect(&self) -> zbus::Result<Link> {
        let connection = Builder::system().method_timeout(CALL).build().await?;
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(SYSTEMD)
            .interface(MANAGER)
            .member("JobRemoved")
            .build()?;
        let ends = MessageStream::for_match_rule(rule, &connection, None).await?;
        tokio::spawn(tell_ends(ends, Arc::clone(&self.jobs)));
        let mut link = Link { connection, version: 0 };
        link.call("Subscribe", &()).await?;
        link.version = link.version().await?;
        Ok(link)
    }

    fn expect(&self, unit: &str) -> oneshot::Receiver<String> {
        let (told, ended) = oneshot::channel();
        lock(&self.jobs).insert(unit.to_owned(), told);
        ended
    }

    fn forget(&self, unit: &str) {
        lock(&self.jobs).remove(unit);
    }
}

impl Link {
    async fn call<B>(&self, method: &str, body: &B) -> zbus::Result<Message>
    where
        B: serde::Serialize + DynamicType,
    {
        self.connection.call_method(Some(SYSTEMD), OBJECT, Some(MANAGER), method, body).await
    }

    /// The number that its version string begins with.
    async fn version(&self) -> zbus::Result<u32> {
        let body = (MANAGER, "Version");
        let interface = Some("org.freedesktop.DBus.Properties");
        let reply = self.connection.call_method(Some(SYSTEMD), OBJECT, interface, "Get", &body).await?;
        let value: zbus::OwnedVariant = reply.body().deserialize()?;
        let text = String::try_from(value)?;
        let digits: String = text.trim_start_matches('v').chars().take_while(char::is_ascii_digit).collect();
        Ok(digits.parse().unwrap_or(0))
    }
}

/// Passes on how jobs have ended, until the connection ends; then nobody may wait any more.
async fn tell_ends(mut ends: MessageStream, jobs: Jobs) {
    while let Some(Ok(message)) = ends.next().await {
        let Ok((_, _, unit, result)) = message.body().deserialize::<(u32, OwnedObjectPath, String, String)>()
        else {
            continue;
        };
        if let Some(waiting) = lock(&jobs).remove(&unit) {
            let _ = waiting.send(result);
        }
    }
    lock(&jobs).clear();
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_named(error: &zbus::Error, name: &str) -> bool {
    matches!(error, zbus::Error::MethodError(found, _, _) if found.as_str() == name)
}

/// Whether the answer says that nobody is there, or that nobody has answered.
fn is_lost(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::InputOutput(_) | zbus::Error::Connection(..) | zbus::Error::InvalidReply => true,
        zbus::Error::FDO(error) => matches!(
            **error,
            fdo::Error::ServiceUnknown(_)
                | fdo::Error::NameHasNoOwner(_)
                | fdo::Error::NoReply(_)
                | fdo::Error::Disconnected(_)
                | fdo::Error::NoServer(_)
        ),
        _ => false,
    }
}

fn not_a_unit(path: &CgroupPath) -> CgroupError {
    CgroupError::InvalidPath { path: path.to_string(), reason: "not the place of a scope below a slice" }
}

fn failed(operation: &'static str, unit: &str, message: String) -> CgroupError {
    CgroupError::Systemd { operation, unit: unit.to_owned(), message }
}
