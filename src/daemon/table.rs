//! Objects in memory by id, with the names that keep two of them from being made twice.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Why an id or prefix names nothing.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Nothing has it.
    Missing,
    /// Several things have it.
    Ambiguous,
}

/// A lock whose holders cannot leave broken data behind: critical sections here are single statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Objects of one kind.
#[derive(Debug)]
pub struct Table<N, T> {
    inner: Mutex<Inner<N, T>>,
}

#[derive(Debug)]
struct Inner<N, T> {
    objects: BTreeMap<String, Arc<T>>,
    names: HashMap<N, String>,
}

impl<N: Hash + Eq + Clone, T> Default for Table<N, T> {
    fn default() -> Self {
        Self { inner: Mutex::new(Inner { objects: BTreeMap::new(), names: HashMap::new() }) }
    }
}

impl<N: Hash + Eq + Clone, T> Table<N, T> {
    /// Takes a name for the object with this id, or says who has it.
    pub fn reserve(&self, name: &N, id: &str) -> Result<(), String> {
        let mut inner = lock(&self.inner);
        if let Some(holder) = inner.names.get(name) {
            return Err(holder.clone());
        }
        inner.names.insert(name.clone(), id.to_owned());
        Ok(())
    }

    /// Gives a name back, if that id has it.
    pub fn release(&self, name: &N, id: &str) {
        let mut inner = lock(&self.inner);
        if inner.names.get(name).is_some_and(|holder| holder == id) {
            inner.names.remove(name);
        }
    }

    /// Lists the object from now on.
    pub fn insert(&self, id: &str, object: Arc<T>) {
        lock(&self.inner).objects.insert(id.to_owned(), object);
    }

    /// Lists it no more.
    pub fn remove(&self, id: &str) {
        lock(&self.inner).objects.remove(id);
    }

    /// The object with exactly this id.
    pub fn exact(&self, id: &str) -> Option<Arc<T>> {
        lock(&self.inner).objects.get(id).cloned()
    }

    /// The object that holds this name.
    pub fn named(&self, name: &N) -> Option<Arc<T>> {
        let inner = lock(&self.inner);
        inner.names.get(name).and_then(|id| inner.objects.get(id)).cloned()
    }

    /// The object whose id is or uniquely begins with this.
    pub fn find(&self, prefix: &str) -> Result<Arc<T>, Lookup> {
        self.find_among(prefix, |_| true)
    }

    /// The same among those that are wanted.
    pub fn find_among(&self, prefix: &str, is_wanted: impl Fn(&T) -> bool) -> Result<Arc<T>, Lookup> {
        let inner = lock(&self.inner);
        if prefix.is_empty() {
            return Err(Lookup::Missing);
        }
        let mut matching =
            inner.objects.range(prefix.to_owned()..).take_while(|(id, _)| id.starts_with(prefix));
        let mut matching = matching.by_ref().filter(|(_, object)| is_wanted(object));
        let (_, first) = matching.next().ok_or(Lookup::Missing)?;
        if matching.next().is_none() { Ok(Arc::clone(first)) } else { Err(Lookup::Ambiguous) }
    }

    /// All objects, by id.
    pub fn all(&self) -> Vec<Arc<T>> {
        lock(&self.inner).objects.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_find_one_or_say_why_not() {
        let table = Table::<String, u8>::default();
        table.insert("abc1", Arc::new(1));
        table.insert("abd2", Arc::new(2));
        assert_eq!(table.find("abc").map(|found| *found), Ok(1));
        assert_eq!(table.find("abd2").map(|found| *found), Ok(2));
        assert_eq!(table.find("ab"), Err(Lookup::Ambiguous));
        assert_eq!(table.find("x"), Err(Lookup::Missing));
        assert_eq!(table.find(""), Err(Lookup::Missing));
    }

    #[test]
    fn a_name_has_one_holder_and_only_the_holder_releases_it() {
        let table = Table::<&str, u8>::default();
        assert_eq!(table.reserve(&"pod", "1"), Ok(()));
        assert_eq!(table.reserve(&"pod", "2"), Err("1".to_owned()));
        table.release(&"pod", "2");
        assert_eq!(table.reserve(&"pod", "2"), Err("1".to_owned()));
        table.release(&"pod", "1");
        assert_eq!(table.reserve(&"pod", "2"), Ok(()));
    }
}
