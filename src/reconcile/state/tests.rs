use super::*;

fn key() -> Key {
    ("ns".to_owned(), "a".to_owned())
}

fn running(notes: &Notes) -> CancellationToken {
    let cancel = CancellationToken::new();
    notes.with(&key(), |note| {
        note.reset(Some("uid-1".to_owned()));
        note.cancel = Some(cancel.clone());
    });
    cancel
}

fn look(notes: &Notes) -> Turn {
    notes.with(&key(), Note::look)
}

#[test]
fn looks_wait_for_the_end_of_a_run_and_then_for_its_pause() {
    let (notes, pause) = (Notes::default(), Duration::from_secs(5));
    notes.with(&key(), |note| note.reset(Some("uid-1".to_owned())));
    assert_eq!(look(&notes), Turn::Now);
    notes.with(&key(), |note| note.cancel = Some(CancellationToken::new()));
    notes.run_ended(&key(), Some(pause));
    assert_eq!((look(&notes), look(&notes)), (Turn::In(pause), Turn::Now));
}

#[test]
fn what_called_for_a_look_during_a_run_does_not_wait_for_its_pause() {
    let notes = Notes::default();
    assert!(notes.may_look(&key()));
    let calls: [fn(&Notes); 2] =
        [|notes| assert_eq!(look(notes), Turn::AfterRun), |notes| assert!(!notes.may_look(&key()))];
    for call in calls {
        running(&notes);
        call(&notes);
        notes.run_ended(&key(), Some(Duration::from_secs(5)));
        assert_eq!(look(&notes), Turn::Now);
    }
}

#[test]
fn those_that_the_api_holds_up_need_not_wait_longer_unless_they_run_again() {
    let notes = Notes::default();
    running(&notes);
    notes.with(&key(), |note| note.api_failures = 1);
    notes.with(&("ns".to_owned(), "b".to_owned()), |_| {});
    assert!(notes.end_pauses().is_empty());
    notes.run_ended(&key(), Some(Duration::from_secs(5)));
    assert_eq!((notes.end_pauses(), look(&notes)), (vec![key()], Turn::Now));
}

#[test]
fn one_that_is_made_anew_waits_for_the_run_of_the_one_that_is_gone() {
    let notes = Notes::default();
    let cancel = running(&notes);
    notes.forget(&key());
    assert!(cancel.is_cancelled());
    assert_eq!(look(&notes), Turn::AfterRun);
    notes.with(&key(), |note| note.reset(Some("uid-2".to_owned())));
    assert_eq!(look(&notes), Turn::AfterRun);
    notes.run_ended(&key(), None);
    assert_eq!(look(&notes), Turn::Now);
}

fn secret(uid: &str, version: &str) -> ObjectMeta {
    let text = |text: &str| Some(text.to_owned());
    ObjectMeta { name: text("a"), uid: text(uid), resource_version: text(version), ..ObjectMeta::default() }
}

fn ahead(metadata: Option<ObjectMeta>, older: [Option<&str>; 2]) -> Note {
    let older = older.map(|version| version.map(Into::into));
    let ahead = Ahead { name: "a".into(), metadata: metadata.map(Arc::new), older };
    Note { ahead: Some(Box::new(ahead)), ..Note::default() }
}

#[test]
fn what_was_written_or_found_live_is_believed_until_the_watch_shows_something_else() {
    // Written over version 2 while the watch showed 1.
    let written = || ahead(Some(secret("u", "3")), [Some("1"), Some("2")]);
    let created = || ahead(Some(secret("u", "3")), [Some("1"), None]);
    let gone = || ahead(None, [Some("1"), Some("1")]);
    type Case<'a> = (&'a dyn Fn() -> Note, Option<&'a str>, Option<&'a str>);
    let cases: [Case<'_>; 9] = [
        (&written, Some("1"), Some("3")),
        (&written, Some("2"), Some("3")),
        (&written, Some("4"), Some("4")),
        (&written, None, None),
        (&created, Some("1"), Some("3")),
        (&created, None, Some("3")),
        (&gone, Some("1"), None),
        (&gone, Some("4"), Some("4")),
        (&Note::default, Some("1"), Some("1")),
    ];
    for (note, shown, believed) in cases {
        let shown = shown.map(|version| Arc::new(secret("u", version)));
        let newest = note().newest("a", shown.clone());
        assert_eq!(version(newest.as_deref()), believed, "{shown:?}");
        assert_eq!(note().newest("b", shown.clone()), shown, "it is about another Secret");
    }
}

#[test]
fn what_is_known_of_a_secret_is_forgotten_when_the_watch_has_brought_it() {
    let is_kept = |uid: &str, version: Option<&str>| {
        let mut note = ahead(Some(secret("u", "3")), [Some("1"), Some("2")]);
        note.watched(&secret(uid, version.unwrap_or("9")), version);
        note.watched(&ObjectMeta { name: Some("state".into()), ..ObjectMeta::default() }, Some("7"));
        note.ahead.is_some()
    };
    assert!(is_kept("u", Some("1")) && is_kept("u", Some("2")));
    assert!(!is_kept("u", Some("3")) && !is_kept("u", Some("4")) && !is_kept("u", None));
    assert!(is_kept("former", None), "the one that was deleted is older");
}

#[test]
fn what_a_list_does_not_hold_may_be_gone() {
    let notes = Notes::default();
    for namespace in ["ns", "other"] {
        notes.with(&(namespace.to_owned(), "a".to_owned()), |note| *note = ahead(Some(secret("u", "3")), [None, None]));
    }
    let known = |namespace: &str| notes.with(&(namespace.to_owned(), "a".to_owned()), |note| note.ahead.is_some());
    notes.listed(None, |_| true);
    assert!(known("ns") && known("other"));
    notes.listed(Some("ns"), |_| false);
    assert!(!known("ns") && known("other"));
}

#[test]
fn runs_in_vain_and_removals_that_fail_become_rare() {
    let (mut note, now) = (Note::default(), Instant::now());
    let waits: Vec<u64> = (0..7).map(|_| note.ran_in_vain().as_secs()).collect();
    assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    let waits: Vec<u64> = (0..10).map(|_| note.removal_failed("u", now).as_secs()).collect();
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
    assert_eq!(note.removal_waits("u", now), Some(Duration::from_secs(300)));
    assert_eq!(note.removal_waits("u", now + Duration::from_secs(300)), None);
    assert_eq!(note.removal_waits("another", now), None);
    assert_eq!(note.removal_failed("another", now), Duration::from_secs(1));
}

#[test]
fn one_that_was_readable_in_between_is_complained_of_again() {
    let mut note = Note::default();
    assert!(note.complain(Some("why")) && !note.complain(Some("why")) && note.complain(Some("other")));
    assert!(note.complain(None) && !note.complain(None) && note.complain(Some("other")));
}

#[test]
fn a_refresh_token_that_is_written_back_late_wakes_who_was_refused_with_the_old_one() {
    let (began, reauthentication) = (Instant::now(), Reason::ReauthenticationRequired);
    // By status, as the watch shows it.
    let mut note = Note::default();
    assert!(!note.source_changed(SourceChange::Rotation, 7, Some("Rejected")));
    assert!(!note.source_changed(SourceChange::Rotation, 7, None));
    assert_eq!(note.unblocked, None);
    assert!(note.source_changed(SourceChange::Rotation, 7, Some("ReauthenticationRequired")));
    assert_eq!(note.unblocked, Some(7));
    // By what this process reported, which the watch does not show yet.
    let reported = Some((8, Instant::now()));
    let mut ahead = Note { reported, waiting: Some((8, reauthentication)), ..Note::default() };
    assert!(ahead.source_changed(SourceChange::Rotation, 7, None));
    assert_eq!(ahead.unblocked, Some(8));
    let mut ahead = Note { reported, waiting: Some((8, Reason::InvalidSpec)), ..Note::default() };
    assert!(!ahead.source_changed(SourceChange::Rotation, 7, Some("ReauthenticationRequired")));
    // During the run, before its failure is reported.
    let mut note = Note::default();
    note.source_changed(SourceChange::Rotation, 7, None);
    assert!(note.has_source_changed_since(began, reauthentication));
    assert!(!note.has_source_changed_since(began, Reason::InvalidSpec), "it may be the run's own write");
    assert!(!note.has_source_changed_since(Instant::now() + Duration::from_secs(1), reauthentication));
    note.source_changed(SourceChange::Other, 7, None);
    assert!(note.has_source_changed_since(began, Reason::InvalidSpec));
}

#[test]
fn a_lease_that_was_found_held_is_left_alone_for_a_while_or_until_that_run_has_ended() {
    let (now, second) = (Instant::now(), Duration::from_secs(1));
    let note = Note { busy: Some((7, now + second)), ..Note::default() };
    assert_eq!(note.is_busy_for(7, now), Some(second));
    assert_eq!((note.is_busy_for(8, now), note.is_busy_for(7, now + second)), (None, None));
    assert_eq!(Note::default().is_busy_for(0, now), None);
}

#[test]
fn a_run_is_notified_when_the_secret_may_have_changed() {
    let (notes, changed) = (Notes::default(), Arc::new(Notify::new()));
    let is_notified = || futures::FutureExt::now_or_never(changed.notified()).is_some();
    running(&notes);
    notes.with(&key(), |note| note.changed = Some(changed.clone()));
    assert!(!is_notified());
    notes.with(&key(), |note| note.watched(&ObjectMeta::default(), None));
    assert!(is_notified());
    notes.listed(Some("another"), |_| true);
    assert!(!is_notified());
    notes.listed(None, |_| true);
    assert!(is_notified());
    notes.run_ended(&key(), None);
    assert!(notes.with(&key(), |note| note.changed.is_none()));
}

#[test]
fn nothing_is_kept_of_one_that_is_gone() {
    let notes = Notes::default();
    running(&notes);
    notes.forget(&key());
    notes.run_ended(&key(), None);
    running(&notes);
    notes.run_ended(&key(), None);
    notes.forget(&key());
    assert!(notes.0.lock().is_empty());
}
