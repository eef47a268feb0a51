use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::client::sample as value;

fn mode(text: &str) -> Mode {
    text.parse().unwrap()
}

/// Without markers.
fn write(target: &Target, value: &Value, mode: Mode) -> Result<Before, Error> {
    super::write(target, value, mode, false)
}

/// What lies in a folder: names, and for each what a reader finds.
fn listed(folder: &Path) -> Vec<(String, String)> {
    let read = |entry: io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        let text = fs::read_to_string(entry.path()).unwrap_or_else(|_| "-".into());
        let name = entry.file_name().into_string().unwrap();
        (if name.starts_with("..2026") { "..value".into() } else { name }, text)
    };
    let mut listed: Vec<_> = fs::read_dir(folder).unwrap().map(read).collect();
    listed.sort();
    listed
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

struct Folder {
    _home: TempDir,
    target: Target,
}

impl Folder {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        Self { target: Target::Folder(home.path().join("deep").join("a")), _home: home }
    }

    fn path(&self) -> &Path {
        self.target.path()
    }
}

#[test]
fn each_key_is_a_file_and_keys_that_are_no_more_go() {
    let folder = Folder::new();
    let first = value(json!({"user": "bWU=", "password": "MQ=="}));
    assert_eq!(write(&folder.target, &first, mode("0400")).unwrap(), Before::Nothing);
    let data = ("..data", "-");
    let expected = pairs(&[data, ("..value", "-"), ("password", "1"), ("user", "me")]);
    assert_eq!(listed(folder.path()), expected);
    assert_eq!(write(&folder.target, &first, mode("0400")).unwrap(), Before::Same);

    let second = value(json!({"user": "bWU=", "token": "Mg=="}));
    assert_eq!(write(&folder.target, &second, mode("0400")).unwrap(), Before::Other);
    let listed = listed(folder.path());
    assert_eq!(listed.len(), 4, "{listed:?}");
    assert!(listed.ends_with(&pairs(&[("token", "2"), ("user", "me")])), "{listed:?}");
}

#[test]
fn modes_are_as_told_whatever_the_umask() {
    for (text, files, folders) in [("0400", 0o400, 0o700), ("0440", 0o440, 0o750)] {
        let folder = Folder::new();
        write(&folder.target, &value(json!({"token": "MQ=="})), mode(text)).unwrap();
        let of = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(of(&folder.path().join("token")), files);
        for path in [folder.path(), folder.path().parent().unwrap(), &folder.path().join(DATA)] {
            assert_eq!(of(path), folders, "{}", path.display());
        }
    }
    // Another mode is another file.
    let folder = Folder::new();
    let one = value(json!({"token": "MQ=="}));
    write(&folder.target, &one, mode("0400")).unwrap();
    assert_eq!(write(&folder.target, &one, mode("0440")).unwrap(), Before::Other);
}

#[test]
fn a_reader_never_sees_two_values_mixed_nor_none() {
    let folder = Folder::new();
    let of = |n: u8| {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let text = STANDARD.encode(vec![b'a' + n; 10_000]);
        value(json!({"one": text, "two": text}))
    };
    write(&folder.target, &of(0), mode("0400")).unwrap();
    let path = folder.path().to_owned();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let reader = std::thread::spawn(move || {
        let mut seen = BTreeSet::new();
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            // As one who follows `..data` once does; the old folder may go while he reads.
            let Ok(data) = fs::read_link(path.join(DATA)) else { panic!("no value") };
            let data = path.join(data);
            let (Ok(one), Ok(two)) = (fs::read(data.join("one")), fs::read(data.join("two"))) else { continue };
            assert!(one == two && one.len() == 10_000);
            seen.insert(one[0]);
        }
        seen.len()
    });
    for n in 0..200 {
        write(&folder.target, &of(n % 20), mode("0400")).unwrap();
    }
    drop(stop);
    assert!(reader.join().unwrap() > 1);
}

#[test]
fn a_single_file_holds_the_bytes_of_one_key() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("token");
    let target = |key: Option<&str>| Target::File { path: path.clone(), key: key.map(str::to_owned) };
    let both = value(json!({"a": "MQ==", "b": "Mg=="}));
    assert_eq!(write(&target(Some("b")), &both, mode("0400")).unwrap(), Before::Nothing);
    assert_eq!(listed(home.path()), pairs(&[("token", "2")]));
    assert_eq!(write(&target(Some("b")), &both, mode("0400")).unwrap(), Before::Same);
    assert_eq!(write(&target(Some("a")), &both, mode("0400")).unwrap(), Before::Other);
    let error = write(&target(Some("c")), &both, mode("0400")).unwrap_err().to_string();
    assert!(error.contains("a, b"), "{error}");
    assert_eq!(listed(home.path()), pairs(&[("token", "1")]), "the old value stays");
    assert!(remove(&target(None)).unwrap() && !remove(&target(None)).unwrap());
    assert_eq!(listed(home.path()), []);
}

#[test]
fn what_the_agent_did_not_make_is_left_alone() {
    let folder = Folder::new();
    fs::create_dir_all(folder.path()).unwrap();
    fs::write(folder.path().join("token"), "mine").unwrap();
    fs::write(folder.path().join("other"), "mine").unwrap();
    let one = value(json!({"token": "MQ=="}));
    let error = write(&folder.target, &one, mode("0400")).unwrap_err().to_string();
    assert!(error.contains("in the way"), "{error}");
    let mine = pairs(&[("other", "mine"), ("token", "mine")]);
    assert_eq!(listed(folder.path()), mine);
    fs::remove_file(folder.path().join("token")).unwrap();
    write(&folder.target, &one, mode("0400")).unwrap();
    assert!(remove(&folder.target).unwrap());
    assert_eq!(listed(folder.path()), pairs(&[("other", "mine")]));
}

#[test]
fn what_a_crash_left_is_cleared_away() {
    let folder = Folder::new();
    fs::create_dir_all(folder.path().join("..20260301T120000Z.0")).unwrap();
    fs::write(folder.path().join("..20260301T120000Z.0").join("token"), "half").unwrap();
    symlink("..20260301T120000Z.0", folder.path().join(DATA_NEXT)).unwrap();
    write(&folder.target, &value(json!({"token": "MQ=="})), mode("0400")).unwrap();
    assert_eq!(listed(folder.path()), pairs(&[("..data", "-"), ("..value", "-"), ("token", "1")]));
}

#[test]
fn a_value_that_nobody_was_told_of_is_another_one_until_they_are() {
    let folder = Folder::new();
    let file = Target::File { path: folder.path().with_file_name("file"), key: None };
    let (first, second) = (value(json!({"token": "MQ=="})), value(json!({"token": "Mg=="})));
    for target in [&folder.target, &file] {
        let write = |value: &Value, marks| super::write(target, value, mode("0400"), marks).unwrap();
        assert_eq!((write(&first, true), write(&first, true)), (Before::Nothing, Before::Same));
        assert_eq!((write(&second, true), write(&second, true)), (Before::Other, Before::Other));
        assert_eq!(write(&second, false), Before::Same, "nobody is to be told");
        told(target).unwrap();
        told(target).unwrap();
        assert_eq!(write(&second, true), Before::Same);
    }
    super::write(&folder.target, &first, mode("0400"), true).unwrap();
    assert!(remove(&folder.target).unwrap());
    assert_eq!(listed(folder.path()), []);
}

/// A file system with room for so many files, or nothing where this user may not mount one.
struct Small(TempDir);

impl Small {
    fn new(files: usize) -> Option<Self> {
        let home = tempfile::tempdir().unwrap();
        let options = format!("size=1m,nr_inodes={files}");
        let mut mount = std::process::Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(home.path()).output();
        mounted.is_ok_and(|mounted| mounted.status.success()).then(|| Self(home))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn on_a_full_disk_either_the_old_value_stays_or_the_new_one_is_there() {
    let (old, new) = (value(json!({"a": "MQ=="})), value(json!({"a": "Mg==", "b": "Mg==", "c": "Mg=="})));
    // The root, a folder with a file, `..data` and a link are 5; beside them a folder with 3 files and 3 links are 7.
    let mut outcomes = BTreeSet::new();
    for files in 5..=13 {
        let Some(disk) = Small::new(files) else { return };
        let (folder, mode) = (disk.0.path(), mode("0400"));
        let target = Target::Folder(folder.to_owned());
        write(&target, &old, mode).unwrap();
        let before = listed(folder);
        let written = write(&target, &new, mode);
        outcomes.insert(written.is_ok());
        match written {
            Ok(_) => assert!(listed(folder).ends_with(&pairs(&[("a", "2"), ("b", "2"), ("c", "2")]))),
            Err(error) => {
                assert!(error.to_string().contains("the old value stays in place"), "{error}");
                assert_eq!(listed(folder), before, "{files}: {error}");
            }
        }
    }
    assert_eq!(outcomes, [false, true].into());
}

#[test]
fn a_value_is_written_although_an_old_one_cannot_be_removed() {
    let folder = Folder::new();
    write(&folder.target, &value(json!({"token": "MQ=="})), mode("0400")).unwrap();
    // A mount point cannot be removed.
    let stuck = folder.path().join("..stuck");
    fs::create_dir(&stuck).unwrap();
    let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&stuck).output();
    let mounted = mounted.is_ok_and(|mounted| mounted.status.success());
    let written = write(&folder.target, &value(json!({"token": "Mg=="})), mode("0400"));
    let text = fs::read_to_string(folder.path().join("token"));
    if mounted {
        std::process::Command::new("umount").arg(&stuck).status().unwrap();
    }
    // Else nobody would be told of the new value: the next try finds it there.
    assert_eq!(written.unwrap(), Before::Other);
    assert_eq!(text.unwrap(), "2");
}

#[test]
fn the_user_is_told_what_to_do() {
    let io = |kind: ErrorKind| Error::Io { path: "/t/a".into(), error: kind.into() }.to_string();
    for (kind, expected) in [
        (ErrorKind::StorageFull, "sizeLimit"),
        (ErrorKind::PermissionDenied, "fsGroup"),
        (ErrorKind::ReadOnlyFilesystem, "readOnly"),
    ] {
        let text = io(kind);
        assert!(text.starts_with("/t/a: ") && text.contains(expected), "{text}");
    }
}
