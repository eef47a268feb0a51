//! Values as files: each write is whole or does not happen.
//!
//! A folder is laid out as the kubelet lays out a mounted Secret: the files lie in a folder of their own, to which the
//! link `..data` leads, and each key is a link through it. A new value is a new folder, and one rename of `..data` brings
//! all its keys at once. Whatever needs space is done before that rename, and what was written is on the disk by then.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::{
    decide::Before,
    targets::{Mode, Target},
};
use crate::client::{Error as ClientError, Value};

/// Why a value is not in its file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("{}: {error}{}", path.display(), hint(error))]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// Something that the agent did not make lies where a file would be.
    #[error("{}: something that the agent did not make is in the way: move it, or take another folder", .0.display())]
    InTheWay(PathBuf),
    /// The value has no such key.
    #[error(transparent)]
    Key(#[from] ClientError),
}

/// What to do about it.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            ": the old value stays in place; raise the volume's sizeLimit"
        }
        ErrorKind::PermissionDenied => ": let the agent's user write there, in a pod by securityContext.fsGroup",
        ErrorKind::ReadOnlyFilesystem => ": mount the volume without readOnly in the agent's container",
        ErrorKind::NotFound => ": mount a volume there, or create the folder",
        ErrorKind::ResourceBusy => ": mount the volume, not a single file of it by subPath",
        _ => "",
    }
}

trait At<T> {
    fn at(self, path: &Path) -> Result<T, Error>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: &Path) -> Result<T, Error> {
        self.map_err(|error| Error::Io { path: path.to_owned(), error })
    }
}

/// Link to the folder with the value.
const DATA: &str = "..data";
/// It, before it is renamed.
const DATA_NEXT: &str = "..data_tmp";
/// No key of a Secret begins like this.
const HIDDEN: &[u8] = b"..";

/// Name of the marker in a folder.
const UNTOLD: &str = "..untold";

/// The file that is there from before a value takes another one's place until those who use it are told: an agent that
/// ends in between tells them when it is started again.
fn marker(target: &Target) -> PathBuf {
    match target {
        Target::Folder(folder) => folder.join(UNTOLD),
        Target::File { path, .. } => beside(path, ".untold"),
    }
}

/// A hidden file beside another one.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from("..");
    name.push(path.file_name().unwrap_or_default());
    name.push(ending);
    path.with_file_name(name)
}

/// Writes a value, unless it is there; what was there before. With `marks`, one that nobody was told of counts as another
/// one.
///
/// # Errors
/// With what was there before still in its place.
pub fn write(target: &Target, value: &Value, mode: Mode, marks: bool) -> Result<Before, Error> {
    let marker = marker(target);
    let mut before = before(target, value, mode)?;
    if before == Before::Same && marks && some(fs::symlink_metadata(&marker)).at(&marker)?.is_some() {
        before = Before::Other;
    }
    if before == Before::Other && marks {
        // Never through a link.
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&marker) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => drop(made.at(&marker)?),
        }
    }
    if before != Before::Same {
        match target {
            Target::Folder(path) => write_folder(path, value, mode)?,
            Target::File { path, key } => write_file(path, value.select(key.as_deref())?.expose(), mode)?,
        }
    }
    Ok(before)
}

/// Those who use the value are told of it, or need not be.
///
/// # Errors
/// Where the file system refuses.
pub fn told(target: &Target) -> Result<(), Error> {
    let marker = marker(target);
    some(fs::remove_file(&marker)).at(&marker).map(|_| ())
}

fn before(target: &Target, value: &Value, mode: Mode) -> Result<Before, Error> {
    Ok(match target {
        Target::Folder(path) => {
            let (data, wanted) = (path.join(DATA), value.entries().count());
            let Some(held) = some(fs::read_dir(&data)).at(&data)? else { return Ok(Before::Nothing) };
            let same = |(key, bytes): (&str, &crate::client::SecretBytes)| {
                holds(&data.join(key), bytes.expose(), mode) && leads_to_data(&path.join(key))
            };
            if held.count() == wanted && value.entries().all(same) { Before::Same } else { Before::Other }
        }
        Target::File { path, key } => {
            let bytes = value.select(key.as_deref())?.expose();
            match some(fs::symlink_metadata(path)).at(path)? {
                None => Before::Nothing,
                Some(is) if is.is_dir() => return Err(Error::InTheWay(path.clone())),
                Some(is) if is.is_file() && holds(path, bytes, mode) => Before::Same,
                Some(_) => Before::Other,
            }
        }
    })
}

/// Whether a file holds just these bytes under this mode. One that cannot be read is written anew.
fn holds(path: &Path, bytes: &[u8], mode: Mode) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let fits = |is: fs::Metadata| is.len() == bytes.len() as u64 && is.mode() & 0o7777 == mode.of_files();
    if !file.metadata().is_ok_and(fits) {
        return false;
    }
    let mut held = Zeroizing::new(Vec::with_capacity(bytes.len() + 1));
    file.take(bytes.len() as u64 + 1).read_to_end(&mut held).is_ok() && *held == bytes
}

fn write_folder(folder: &Path, value: &Value, mode: Mode) -> Result<(), Error> {
    make_folders(folder, mode)?;
    let fresh = make_fresh(folder, value)?;
    let mut linked = Vec::new();
    let written = fill(folder, &fresh, value, mode)
        .and_then(|()| link_keys(folder, value, &mut linked))
        .and_then(|()| switch(folder, &fresh));
    if let Err(error) = written {
        // The old value stays; what was begun goes.
        for link in linked {
            let _ = fs::remove_file(link);
        }
        let _ = fs::remove_dir_all(&fresh);
        return Err(error);
    }
    // The new value is in place. What is left of old ones is removed with the next one, if not now.
    let keys = value.entries().map(|(key, _)| key.into()).collect();
    if let Err(error) = tidy(folder, &keys, Some(&fresh)) {
        tracing::warn!(%error, "the value is written, but the files of old values could not be removed");
    }
    Ok(())
}

/// The folder, and those above it where they are missing.
fn make_folders(folder: &Path, mode: Mode) -> Result<(), Error> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent().filter(|above| !above.as_os_str().is_empty()) {
        make_folders(above, mode)?;
    }
    fs::create_dir(folder).at(folder)?;
    set_folder_mode(folder, mode)
}

/// Keeps the bit that hands the group down, which an fsGroup sets.
fn set_folder_mode(folder: &Path, mode: Mode) -> Result<(), Error> {
    let group = fs::metadata(folder).at(folder)?.mode() & 0o2000;
    fs::set_permissions(folder, Permissions::from_mode(mode.of_folders() | group)).at(folder)
}

/// A folder for the value, which others may not look into before it is done. Its name comes never again: who reads by an
/// old name finds the old value or none.
fn make_fresh(folder: &Path, value: &Value) -> Result<PathBuf, Error> {
    let fetched = value.fetched_at().format("%Y%m%dT%H%M%SZ");
    let fresh = folder.join(format!("..{fetched}.{:016x}", rand::random::<u64>()));
    DirBuilder::new().mode(0o700).create(&fresh).at(&fresh)?;
    Ok(fresh)
}

fn fill(folder: &Path, fresh: &Path, value: &Value, mode: Mode) -> Result<(), Error> {
    for (key, bytes) in value.entries() {
        let link = folder.join(key);
        if some(fs::symlink_metadata(&link)).at(&link)?.is_some() && !leads_to_data(&link) {
            return Err(Error::InTheWay(link));
        }
        write_new(&fresh.join(key), bytes.expose(), mode)?;
    }
    set_folder_mode(fresh, mode)?;
    sync_folder(fresh);
    Ok(())
}

/// Makes the links of keys that have none, and gives them. Until there is a value with such a key, they lead nowhere.
fn link_keys(folder: &Path, value: &Value, linked: &mut Vec<PathBuf>) -> Result<(), Error> {
    for (key, _) in value.entries() {
        let link = folder.join(key);
        match symlink(Path::new(DATA).join(key), &link) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => {
                made.at(&link)?;
                linked.push(link);
            }
        }
    }
    Ok(())
}

/// Lets `..data` lead to the new value.
fn switch(folder: &Path, fresh: &Path) -> Result<(), Error> {
    let next = folder.join(DATA_NEXT);
    some(fs::remove_file(&next)).at(&next)?;
    symlink(fresh.file_name().unwrap_or_default(), &next).at(&next)?;
    let data = folder.join(DATA);
    if let Err(error) = fs::rename(&next, &data).at(&data) {
        let _ = fs::remove_file(&next);
        return Err(error);
    }
    // Before old values are removed.
    sync_folder(folder);
    Ok(())
}

/// Has the entries of a folder written to the disk. Not all file systems can do that for a folder; then they are written
/// when they are written.
fn sync_folder(folder: &Path) {
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}

/// Removes the links of keys that are no more, old values, and what a crash may have left.
fn tidy(folder: &Path, keys: &BTreeSet<OsString>, fresh: Option<&Path>) -> Result<(), Error> {
    for entry in fs::read_dir(folder).at(folder)? {
        let entry = entry.at(folder)?;
        let (path, name) = (entry.path(), entry.file_name());
        let is_old = name.as_encoded_bytes().starts_with(HIDDEN) && name != DATA && fresh != Some(&*path);
        if is_old && path.is_dir() {
            some(fs::remove_dir_all(&path)).at(&path)?;
        } else if !keys.contains(&name) && leads_to_data(&path) {
            some(fs::remove_file(&path)).at(&path)?;
        }
    }
    Ok(())
}

fn leads_to_data(path: &Path) -> bool {
    fs::read_link(path).is_ok_and(|to| to.starts_with(DATA))
}

fn write_file(path: &Path, bytes: &[u8], mode: Mode) -> Result<(), Error> {
    let next = beside(path, ".tokencache");
    some(fs::remove_file(&next)).at(&next)?;
    let written = write_new(&next, bytes, mode).and_then(|()| fs::rename(&next, path).at(path));
    match &written {
        Ok(()) => path.parent().iter().for_each(|folder| sync_folder(folder)),
        Err(_) => _ = fs::remove_file(&next),
    }
    written
}

/// Writes a file that is not there yet; its last mode it gets when it is whole. Else a power cut after the rename could
/// leave an empty file, and some file systems tell only now that they are full.
fn write_new(path: &Path, bytes: &[u8], mode: Mode) -> Result<(), Error> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).at(path)?;
    file.write_all(bytes).at(path)?;
    file.sync_all().at(path)?;
    file.set_permissions(Permissions::from_mode(mode.of_files())).at(path)
}

/// Removes a value; whether there was one.
///
/// # Errors
/// Where the file system refuses.
pub fn remove(target: &Target) -> Result<bool, Error> {
    told(target)?;
    match target {
        Target::File { path, .. } => Ok(some(fs::remove_file(path)).at(path)?.is_some()),
        Target::Folder(folder) => {
            let data = folder.join(DATA);
            // At once for all keys.
            let removed = some(fs::remove_file(&data)).at(&data)?.is_some();
            if folder.is_dir() {
                tidy(folder, &BTreeSet::new(), None)?;
            }
            Ok(removed)
        }
    }
}

fn some<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether what is written below this path stays in memory; nothing where that cannot be told.
#[must_use]
pub fn is_on_memory(path: &Path) -> Option<bool> {
    #[cfg(target_os = "linux")]
    {
        // linux/magic.h
        const TMPFS: u64 = 0x0102_1994;
        const RAMFS: u64 = 0x8584_58f6;
        let there = path.ancestors().find(|path| path.exists())?;
        let kind = u64::try_from(rustix::fs::statfs(there).ok()?.f_type).ok()?;
        Some(matches!(kind, TMPFS | RAMFS))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        None
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
