//! Platforms, and which entry of an index suits this machine.
//!
//! Rules are containerd's: names are normalised (`x86_64` is `amd64`, `aarch64` is `arm64`), a
//! machine accepts older variants of its architecture in order of preference, and 32-bit images
//! where the processor runs them.

use serde::{Deserialize, Serialize};

use crate::manifest::{Descriptor, Index, Kind};

/// What machine an image is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`, …
    #[serde(default)]
    pub architecture: String,
    /// `linux`
    #[serde(default)]
    pub os: String,
    /// `v7`, `v8`, …
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// Features that the host must have.
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
}

impl Platform {
    /// The machine this program was built for.
    pub fn host() -> Self {
        Self {
            architecture: architecture(std::env::consts::ARCH).0.to_owned(),
            os: "linux".to_owned(),
            variant: if cfg!(target_arch = "arm") { "v7" } else { "" }.to_owned(),
            os_features: Vec::new(),
        }
    }

    /// `os/architecture[/variant]`, as `--platform` takes it; the operating system may be left out.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let well_formed = |part: &&str| {
            part.len() <= 32
                && part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        if !parts.iter().all(well_formed) {
            return None;
        }
        let (os, name, variant) = match parts.as_slice() {
            [name] => ("linux", *name, ""),
            [os, name] => (*os, *name, ""),
            [os, name, variant] => (*os, *name, *variant),
            _ => return None,
        };
        let platform = Self {
            architecture: name.to_owned(),
            os: os.to_owned(),
            variant: variant.to_owned(),
            os_features: Vec::new(),
        };
        Some(platform.normalised())
    }

    fn normalised(&self) -> Self {
        let (architecture, implied) = architecture(&self.architecture);
        let variant = if self.variant.is_empty() { implied } else { self.variant.as_str() };
        let variant = match (architecture, variant) {
            ("amd64", "v1") | ("arm64", "v8" | "8" | "v8.0") => "",
            ("arm" | "arm64", digits) if digits.starts_with(|c: char| c.is_ascii_digit()) => {
                return Self {
                    architecture: architecture.to_owned(),
                    os: self.os.to_ascii_lowercase(),
                    variant: format!("v{digits}"),
                    os_features: self.os_features.clone(),
                };
            }
            ("arm", "") => "v7",
            (_, variant) => variant,
        };
        Self {
            architecture: architecture.to_owned(),
            os: self.os.to_ascii_lowercase(),
            variant: variant.to_owned(),
            os_features: self.os_features.clone(),
        }
    }

    /// Everything this platform runs, best first.
    fn accepted(&self) -> Vec<(String, String)> {
        let this = self.normalised();
        let mut accepted = Vec::new();
        let mut accept = |name: &str, variant: String| accepted.push((name.to_owned(), variant));
        match this.architecture.as_str() {
            "amd64" => {
                let level = this.variant.strip_prefix('v').and_then(|v| v.parse::<u32>().ok()).unwrap_or(1);
                for older in (2..=level.min(4)).rev() {
                    accept("amd64", format!("v{older}"));
                }
                accept("amd64", String::new());
                accept("386", String::new());
            }
            "arm64" => {
                let (major, minor) = arm_version(&this.variant).unwrap_or((8, 0));
                if major >= 9 {
                    for older in (0..=minor.min(9)).rev() {
                        accept("arm64", if older == 0 { "v9".to_owned() } else { format!("v9.{older}") });
                    }
                }
                // Armv9.k contains Armv8.(k+5).
                let newest = if major >= 9 { minor.min(4) + 5 } else { minor.min(9) };
                for older in (1..=newest).rev() {
                    accept("arm64", format!("v8.{older}"));
                }
                accept("arm64", String::new());
                for variant in ["v8", "v7", "v6", "v5"] {
                    accept("arm", variant.to_owned());
                }
            }
            "arm" => {
                let newest = this.variant.strip_prefix('v').and_then(|v| v.parse::<u32>().ok()).unwrap_or(7);
                for older in (5..=newest.min(8)).rev() {
                    accept("arm", format!("v{older}"));
                }
            }
            other => accept(other, this.variant.clone()),
        }
        accepted
    }

    /// How well `other` suits this machine: 0 is best, nothing is not at all.
    fn rank(&self, other: &Self) -> Option<usize> {
        let other = other.normalised();
        // A required feature that nobody here has heard of cannot be met.
        if other.os != "linux" || !other.os_features.is_empty() {
            return None;
        }
        self.accepted()
            .iter()
            .position(|(name, variant)| *name == other.architecture && *variant == other.variant)
    }

    /// Whether this machine's processor runs images for `other`.
    pub(crate) fn runs(&self, other: &Self) -> bool {
        let other = other.normalised();
        self.accepted().iter().any(|(name, _)| *name == other.architecture)
    }

    /// Chooses from an index; nothing if no entry suits.
    pub fn choose<'a>(&self, index: &'a Index) -> Option<&'a Descriptor> {
        let images: Vec<&Descriptor> = index
            .manifests
            .iter()
            .filter(|entry| entry.kind().is_some() && !entry.is_attestation())
            .collect();
        let best = images
            .iter()
            .filter_map(|entry| Some((self.rank(entry.platform.as_ref()?)?, *entry)))
            .min_by_key(|(rank, _)| *rank);
        if let Some((_, entry)) = best {
            return Some(entry);
        }
        // An entry that says nothing is taken only where there is no choice, or where it leads to
        // another index, whose entries say it.
        let silent: Vec<&Descriptor> =
            images.iter().filter(|entry| entry.platform.is_none()).copied().collect();
        match silent.as_slice() {
            [only] if images.len() == 1 || only.kind() == Some(Kind::Index) => Some(only),
            _ => None,
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

fn architecture(name: &str) -> (&str, &'static str) {
    match name {
        "x86_64" | "x86-64" | "AMD64" => ("amd64", ""),
        "i386" | "i686" | "x86" => ("386", ""),
        "aarch64" | "ARM64" => ("arm64", ""),
        "armhf" => ("arm", "v7"),
        "armel" => ("arm", "v6"),
        "powerpc64" => ("ppc64le", ""),
        name => (name, ""),
    }
}

fn arm_version(variant: &str) -> Option<(u32, u32)> {
    let digits = variant.strip_prefix('v')?;
    match digits.split_once('.') {
        Some((major, minor)) => Some((major.parse().ok()?, minor.parse().ok()?)),
        None => Some((digits.parse().ok()?, 0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{OCI_INDEX, OCI_MANIFEST};

    fn entry(platform: &str) -> Descriptor {
        let mut entry = Descriptor::of(OCI_MANIFEST, platform.as_bytes());
        let mut parts = platform.split('/');
        let mut next = || parts.next().unwrap_or_default().to_owned();
        entry.platform =
            Some(Platform { os: next(), architecture: next(), variant: next(), os_features: Vec::new() });
        entry
    }

    fn chosen(machine: &str, entries: &[Descriptor]) -> Option<usize> {
        let index = Index { manifests: entries.to_vec() };
        let chosen = Platform::parse(machine).unwrap().choose(&index)?;
        entries.iter().position(|entry| entry == chosen)
    }

    #[test]
    fn the_best_variant_wins_whatever_the_order() {
        let all =
            ["linux/386", "linux/arm/v6", "linux/arm64/v8", "linux/amd64", "linux/arm/v7", "linux/amd64/v3"];
        let all: Vec<Descriptor> = all.iter().map(|platform| entry(platform)).collect();
        assert_eq!(chosen("amd64", &all), Some(3));
        assert_eq!(chosen("x86_64", &all), Some(3));
        assert_eq!(chosen("linux/amd64/v4", &all), Some(5));
        assert_eq!(chosen("linux/amd64/v2", &all), Some(3));
        assert_eq!(chosen("aarch64", &all), Some(2));
        assert_eq!(chosen("linux/arm64/v9", &all), Some(2));
        assert_eq!(chosen("arm", &all), Some(4));
        assert_eq!(chosen("linux/arm/v6", &all), Some(1));
        assert_eq!(chosen("s390x", &all), None);
        assert_eq!(chosen("amd64", &all[..1]), Some(0));
        assert_eq!(chosen("arm64", &all[..2]), Some(1));
    }

    #[test]
    fn names_are_normalised_on_both_sides() {
        assert_eq!(chosen("amd64", &[entry("linux/x86_64")]), Some(0));
        assert_eq!(chosen("arm64", &[entry("linux/aarch64")]), Some(0));
        assert_eq!(chosen("armhf", &[entry("linux/arm")]), Some(0));
        assert_eq!(chosen("linux/arm/7", &[entry("linux/arm/v7")]), Some(0));
        assert_eq!(Platform::parse("linux/arm64/v8").unwrap().to_string(), "linux/arm64");
        for bad in ["", "/", "a/b/c/d", "linux/", "linux/a b", "linux/../x"] {
            assert_eq!(Platform::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn strangers_in_an_index_are_passed_over() {
        let mut attestation = entry("linux/amd64");
        attestation.annotations.insert("vnd.docker.reference.type".to_owned(), "x".to_owned());
        let mut strange = entry("linux/amd64");
        strange.media_type = "application/vnd.example+json".to_owned();
        let mut featured = entry("linux/amd64");
        featured.platform.as_mut().unwrap().os_features.push("erofs".to_owned());
        let others = [attestation, strange, featured, entry("unknown/unknown"), entry("windows/amd64")];
        assert_eq!(chosen("amd64", &others), None);
        let mut with_ours = others.to_vec();
        with_ours.push(entry("linux/amd64"));
        assert_eq!(chosen("amd64", &with_ours), Some(5));
    }

    #[test]
    fn silence_is_accepted_only_without_a_choice() {
        let silent = Descriptor::of(OCI_MANIFEST, b"silent");
        assert_eq!(chosen("amd64", std::slice::from_ref(&silent)), Some(0));
        assert_eq!(chosen("amd64", &[silent.clone(), entry("linux/arm64")]), None);
        let nested = Descriptor::of(OCI_INDEX, b"nested");
        assert_eq!(chosen("amd64", &[nested, entry("linux/s390x")]), Some(0));
    }

    #[test]
    fn the_host_accepts_itself() {
        let host = Platform::host();
        assert_eq!(host.rank(&host), Some(0));
    }
}
