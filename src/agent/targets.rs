//! Which files hold which values, and under which permissions. Pure: nothing here touches a disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Component, Path, PathBuf},
    str::FromStr,
};

/// Where the value of one TokenCache is written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A folder with a file for each key of the Secret. All of them change at once.
    Folder(PathBuf),
    /// One file with the bytes under one key: by default `token`, or the only key.
    File {
        /// Its path.
        path: PathBuf,
        /// Key of the Secret.
        key: Option<String>,
    },
}

impl Target {
    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::File { path, .. } => path,
        }
    }
}

/// Each TokenCache that is kept, with its targets: none where its value is only served.
pub type Targets = BTreeMap<String, Vec<Target>>;

/// One `NAME[:KEY]=PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOf {
    name: String,
    key: Option<String>,
    path: PathBuf,
}

/// Why an argument is refused: a sentence that says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Misused(String);

impl FromStr for FileOf {
    type Err = Misused;

    fn from_str(text: &str) -> Result<Self, Misused> {
        let wrong = || Misused(format!("{text:?} names no file: write NAME=PATH or NAME:KEY=PATH"));
        let (of, path) = text.split_once('=').filter(|(_, path)| !path.is_empty()).ok_or_else(wrong)?;
        let (name, key) = match of.split_once(':') {
            Some((name, key)) => (name, Some(key)),
            None => (of, None),
        };
        if key.is_some_and(str::is_empty) {
            return Err(wrong());
        }
        let path = PathBuf::from(path);
        if path.file_name().is_none() {
            return Err(Misused(format!("{} is a folder: name the file in it", path.display())));
        }
        Ok(Self { name: checked_name(name)?.to_owned(), key: key.map(str::to_owned), path })
    }
}

/// Puts together what is kept, from names, the folder that has a folder for each of them, and single files.
///
/// # Errors
/// Where a name is none, nothing is named, or two values would be written to the same place.
pub fn targets(names: &[String], folder: Option<&Path>, files: &[FileOf]) -> Result<Targets, Misused> {
    let mut targets = Targets::new();
    for name in names {
        let own = targets.entry(checked_name(name)?.to_owned()).or_default();
        own.extend(folder.map(|folder| Target::Folder(folder.join(name))).filter(|target| !own.contains(target)));
    }
    for FileOf { name, key, path } in files {
        let target = Target::File { path: path.clone(), key: key.clone() };
        targets.entry(name.clone()).or_default().push(target);
    }
    if targets.is_empty() {
        return Err(Misused("name a TokenCache, as NAME or by --file NAME[:KEY]=PATH".into()));
    }
    let mut paths = BTreeSet::new();
    for target in targets.values().flatten() {
        if !paths.insert(plain(target.path())) {
            return Err(Misused(format!("two values would be written to {}", target.path().display())));
        }
    }
    let folders = targets.values().flatten().filter(|target| matches!(target, Target::Folder(_)));
    for folder in folders.map(|target| plain(target.path())) {
        if let Some(inside) = paths.iter().find(|path| path.starts_with(&folder) && **path != folder) {
            let (inside, folder) = (inside.display(), folder.display());
            return Err(Misused(format!(
                "{inside} is in {folder}, which the agent keeps for one value: take another path"
            )));
        }
    }
    Ok(targets)
}

/// The path without `.`, so that two ways to write the same are found to be the same.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != Component::CurDir).collect()
}

/// A name that Kubernetes could have given (RFC 1123): it becomes part of a path.
fn checked_name(name: &str) -> Result<&str, Misused> {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let part = |part: &str| end(part.chars().next()) && end(part.chars().next_back());
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if name.len() <= 253 && name.chars().all(known) && name.split('.').all(part) {
        return Ok(name);
    }
    Err(Misused(format!("{name:?} cannot be the name of a TokenCache")))
}

/// Permissions of files with values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(u32);

impl Mode {
    /// Of the files.
    #[must_use]
    pub fn of_files(self) -> u32 {
        self.0
    }

    /// Of the folders: whoever may read the files may look for them, and only the agent may put files there.
    #[must_use]
    pub fn of_folders(self) -> u32 {
        let read = self.0 & 0o444;
        0o300 | read | read >> 2
    }
}

impl FromStr for Mode {
    type Err = Misused;

    fn from_str(text: &str) -> Result<Self, Misused> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| mode & 0o400 != 0 && mode & !0o644 == 0);
        mode.map(Self).ok_or_else(|| {
            Misused(format!("{text:?} is no mode for values: write 0400, or 0440 for the group, or 0444 for all"))
        })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(names: &[&str], folder: Option<&str>, files: &[&str]) -> Result<Targets, Misused> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let files = files.iter().map(|text| text.parse()).collect::<Result<Vec<FileOf>, _>>()?;
        targets(&names, folder.map(Path::new), &files)
    }

    #[test]
    fn names_have_folders_and_files_are_as_they_are_told() {
        let made = made(&["a", "b", "a"], Some("/run/t"), &["a:key=/run/one", "c=/run/c"]).unwrap();
        let file = |path: &str, key: Option<&str>| Target::File { path: path.into(), key: key.map(str::to_owned) };
        assert_eq!(made["a"], [Target::Folder("/run/t/a".into()), file("/run/one", Some("key"))]);
        assert_eq!(made["b"], [Target::Folder("/run/t/b".into())]);
        assert_eq!(made["c"], [file("/run/c", None)]);
    }

    #[test]
    fn a_name_without_a_folder_is_only_served() {
        assert_eq!(made(&["a"], None, &[]).unwrap()["a"], []);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_to_write() {
        for (names, folder, files, expected) in [
            (&[][..], Some("/t"), &[][..], "name a TokenCache"),
            (&["../../etc"], Some("/t"), &[], "cannot be the name"),
            (&["a..b"], Some("/t"), &[], "cannot be the name"),
            (&["A"], Some("/t"), &[], "cannot be the name"),
            (&[], None, &["a"], "NAME:KEY=PATH"),
            (&[], None, &["a="], "NAME:KEY=PATH"),
            (&[], None, &["a:=/x"], "NAME:KEY=PATH"),
            (&[], None, &["/=/x"], "cannot be the name"),
            (&[], None, &["a=/"], "is a folder"),
            (&[], None, &["a=/x", "b=/./x"], "two values"),
            (&["a"], Some("/t"), &["b=/t/a/token"], "take another path"),
            (&["a"], Some("/t"), &["b=/t/a"], "two values"),
        ] {
            let error = made(names, folder, files).unwrap_err().to_string();
            assert!(error.contains(expected), "{names:?} {folder:?} {files:?}: {error}");
        }
    }

    #[test]
    fn folders_let_those_in_who_may_read() {
        for (text, files, folders) in
            [("0400", 0o400, 0o700), ("440", 0o440, 0o750), ("0444", 0o444, 0o755), ("0640", 0o640, 0o750)]
        {
            let mode: Mode = text.parse().unwrap();
            assert_eq!((mode.of_files(), mode.of_folders()), (files, folders), "{text}");
        }
        for wrong in ["0000", "0040", "0777", "0666", "04000", "rw", "", "-400", "0460"] {
            assert!(wrong.parse::<Mode>().is_err(), "{wrong}");
        }
    }
}
