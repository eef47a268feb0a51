use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::json;

use super::*;
use crate::{
    k8s::object::OwnerRef,
    testing::fixtures::{at, cache, lifetime, start},
};

fn data(text: &str) -> BTreeMap<String, SecretBytes> {
    BTreeMap::from([("token".to_owned(), text.as_bytes().to_vec().into())])
}

fn written(cache: &TokenCache) -> SealedSecret {
    let mut secret = desired(cache, &OwnerRef::of(cache), None, data("t0p"), lifetime(0.0, 100.0));
    secret.metadata.resource_version = Some("7".into());
    secret
}

#[test]
fn the_secret_says_whose_it_is_and_how_long_it_is_valid() {
    let cache = cache(json!({"target": {"labels": {"team": "x"}, "type": "example.com/token"}}), json!(null));
    let secret = desired(&cache, &OwnerRef::of(&cache), None, data("t"), lifetime(0.7, 100.9));
    let json = serde_json::to_value(&secret).expect("serializable");
    assert_eq!(json["metadata"]["name"], "a");
    assert_eq!(json["metadata"]["labels"], json!({"team": "x", "tokencache.dev/managed": "true"}));
    assert_eq!(json["metadata"]["annotations"]["tokencache.dev/expires_at"], "2026-03-01T12:01:40Z");
    assert_eq!(json["metadata"]["annotations"]["tokencache.dev/fetched_at"], "2026-03-01T12:00:00Z");
    assert_eq!(json["metadata"]["ownerReferences"][0]["uid"], "uid-1");
    assert_eq!(json["metadata"]["ownerReferences"][0]["controller"], true);
    assert_eq!(json["type"], "example.com/token");
    assert_eq!(json["data"]["token"], "dA==");
}

#[test]
fn what_another_hand_put_on_the_secret_stays() {
    let cache = cache(json!({}), json!(null));
    let mut found = written(&cache).metadata;
    found.labels.get_or_insert_default().insert("theirs".into(), "1".into());
    found.annotations.get_or_insert_default().insert("theirs".into(), "2".into());
    found.finalizers = Some(vec!["theirs/f".into()]);
    let secret = desired(&cache, &OwnerRef::of(&cache), Some(&found), data("t"), lifetime(0.0, 100.0));
    assert_eq!(secret.metadata.labels.expect("set")["theirs"], "1");
    assert_eq!(secret.metadata.annotations.expect("set")["theirs"], "2");
    assert_eq!(secret.metadata.finalizers, found.finalizers);
    assert_eq!(secret.metadata.owner_references.expect("set").len(), 1);
    assert_eq!(secret.metadata.resource_version.as_deref(), Some("7"));
}

#[test]
fn only_a_value_of_the_token_cache_is_removed_or_retained_with_it() {
    let ours = cache(json!({}), json!(null));
    let is_value = |change: fn(&mut ObjectMeta)| {
        let mut metadata = written(&ours).metadata;
        change(&mut metadata);
        holds_value(&ours.metadata, &metadata)
    };
    assert!(is_value(|_| {}));
    assert!(is_value(|metadata| metadata.name = Some("of-a-former-target".into())));
    for change in [
        |metadata: &mut ObjectMeta| metadata.name = Some("tokencache-a-state".into()),
        |metadata: &mut ObjectMeta| {
            metadata.labels.get_or_insert_default().insert(LABEL_STATE.into(), "true".into());
        },
        |metadata: &mut ObjectMeta| metadata.owner_references.get_or_insert_default()[0].uid = "uid-2".into(),
        |metadata: &mut ObjectMeta| metadata.owner_references.get_or_insert_default()[0].controller = None,
        |metadata: &mut ObjectMeta| metadata.annotations = None,
        |metadata: &mut ObjectMeta| drop(metadata.annotations.get_or_insert_default().remove(ANNOTATION_FETCH_HASH)),
        |metadata: &mut ObjectMeta| drop(metadata.annotations.get_or_insert_default().remove(ANNOTATION_EXPIRES_AT)),
    ] {
        assert!(!is_value(change));
    }
}

#[test]
fn a_secret_is_intact_until_its_data_or_what_it_says_of_it_changes() {
    let cache = cache(json!({}), json!(null));
    let change = |change: fn(&mut SealedSecret)| {
        let mut secret = written(&cache);
        change(&mut secret);
        is_intact(&secret)
    };
    fn annotate(secret: &mut SealedSecret, key: &str) {
        secret.metadata.annotations.get_or_insert_default().insert(key.into(), "2099-01-01T00:00:00Z".into());
    }
    assert!(change(|_| {}));
    assert!(change(|secret| annotate(secret, "theirs")));
    assert!(!change(|secret| secret.data = data("other")));
    fn more() -> [(String, SecretBytes); 1] {
        [("more".to_owned(), vec![1].into())]
    }
    assert!(!change(|secret| secret.data.extend(more())));
    assert!(!change(|secret| secret.data.clear()));
    assert!(!change(|secret| annotate(secret, ANNOTATION_EXPIRES_AT)));
    assert!(!change(|secret| annotate(secret, ANNOTATION_FETCHED_AT)));
    assert!(!change(|secret| annotate(secret, ANNOTATION_FETCH_HASH)));
    assert!(!change(|secret| annotate(secret, ANNOTATION_DATA_HASH)));
}

#[test]
fn whose_a_foreign_secret_is_is_told() {
    let ours = cache(json!({}), json!({}));
    let whose = |change: fn(&mut OwnerReference)| {
        let mut metadata = written(&ours).metadata;
        metadata.owner_references.iter_mut().flatten().for_each(change);
        match read(&ours, Some(&metadata), None) {
            SecretState::Foreign(whose) => whose,
            state => panic!("{state:?}"),
        }
    };
    let mut left = written(&ours).metadata;
    left.owner_references.iter_mut().flatten().for_each(|owner| owner.uid = "former".into());
    assert_eq!(read(&ours, Some(&left), None), SecretState::Leftover);
    left.labels = None;
    assert!(
        matches!(read(&ours, Some(&left), None), SecretState::Foreign(whose) if whose.contains("garbage collection"))
    );
    let other = |owner: &mut OwnerReference| (owner.uid, owner.name) = ("other".into(), "b".into());
    assert_eq!(whose(other), "is owned by TokenCache b");
    let of_another_group = |owner: &mut OwnerReference| {
        (owner.uid, owner.api_version) = ("former".into(), "example.com/v1".into());
    };
    assert_eq!(whose(of_another_group), "is owned by TokenCache a");
    assert_eq!(whose(|owner| owner.controller = None), "has no controlling owner");
}

#[test]
fn a_secret_tells_whether_it_is_ours_and_as_it_was_written() {
    let ours = cache(json!({"target": {"labels": {"team": "x"}}}), json!({"secretResourceVersion": "7"}));
    let intact = written(&ours).metadata;
    let stored = |change: fn(&mut ObjectMeta), verified: Option<(&str, Verdict)>| {
        let mut metadata = intact.clone();
        change(&mut metadata);
        match read(&ours, Some(&metadata), verified) {
            SecretState::Owned(stored) => Some(stored),
            SecretState::Absent | SecretState::Leftover | SecretState::Foreign(_) => None,
        }
    };
    let integrity = |change, verified| stored(change, verified).map(|stored| stored.integrity);
    let touch = |metadata: &mut ObjectMeta| metadata.resource_version = Some("8".into());
    let is_drifted = |integrity| matches!(integrity, Some(Integrity::Drifted(_)));
    assert_eq!(integrity(|_| {}, None), Some(Integrity::Intact));
    assert_eq!(integrity(touch, None), Some(Integrity::Unverified));
    assert_eq!(integrity(touch, Some(("8", Verdict::Same))), Some(Integrity::Intact));
    assert!(is_drifted(integrity(touch, Some(("8", Verdict::Changed)))));
    assert_eq!(integrity(touch, Some(("6", Verdict::Changed))), Some(Integrity::Unverified));
    for change in [
        |metadata: &mut ObjectMeta| drop(metadata.annotations.take()),
        |metadata: &mut ObjectMeta| {
            metadata.annotations.get_or_insert_default().insert(ANNOTATION_EXPIRES_AT.into(), "soon".into());
        },
    ] {
        assert!(is_drifted(integrity(change, None)));
    }
    let relabel: [fn(&mut ObjectMeta); 2] = [
        |metadata| drop(metadata.labels.take()),
        |metadata| drop(metadata.labels.get_or_insert_default().insert("team".into(), "y".into())),
    ];
    let keys = ["the label tokencache.dev/managed", "the label team"];
    for (change, key) in relabel.into_iter().zip(keys) {
        // As it was written, by whichever replica: an admission webhook has changed it, and would do so again.
        for verified in [None, Some(("7", Verdict::Written))] {
            let stored = stored(change, verified).expect("owned");
            assert_eq!((stored.drift(), stored.mutated.as_deref()), (None, Some(key)));
        }
        let stored = stored(change, Some(("7", Verdict::Same))).expect("owned");
        assert_eq!((stored.drift(), stored.mutated), (Some(format!("{key} was changed")), None));
    }
    assert_eq!(integrity(|metadata| metadata.owner_references = None, None), None);
    let theirs = |metadata: &mut ObjectMeta| metadata.owner_references.get_or_insert_default()[0].uid = "uid-2".into();
    assert_eq!(integrity(theirs, None), None);
    assert_eq!(read(&ours, None, None), SecretState::Absent);
}

#[test]
fn the_value_does_not_print() {
    let cache = cache(json!({}), json!(null));
    let printed = format!("{:?}", written(&cache));
    assert!(printed.contains("REDACTED") && !printed.contains("t0p") && !printed.contains("dDBw"), "{printed}");
}

#[test]
fn the_exact_lifetime_is_stored_no_later_than_it_is() {
    let cache = cache(json!({}), json!(null));
    let secret = desired(&cache, &OwnerRef::of(&cache), None, data("t"), lifetime(0.9, 4.9));
    let lifetime = match read(&cache, Some(&secret.metadata), None) {
        SecretState::Owned(stored) => stored.lifetime,
        SecretState::Absent | SecretState::Leftover | SecretState::Foreign(_) => None,
    };
    assert_eq!(lifetime, Some(Lifetime { fetched_at: start(), expires_at: ExpiresAt::At(at(4.0)) }));
}

#[test]
fn the_secret_says_when_its_data_changed_from_one_value_to_another() {
    let [new, ran] = [json!(null), json!({"runs": 1})].map(|status| cache(json!({}), status));
    let secret = |cache: &TokenCache, found: Option<&SealedSecret>, text: &str, from: f64| {
        let found = found.map(|found| &found.metadata);
        desired(cache, &OwnerRef::of(cache), found, data(text), lifetime(from, 100.0))
    };
    let changed = |secret: &SealedSecret| secret.metadata.annotations.as_ref()?.get(ANNOTATION_CHANGED_AT).cloned();
    let first = secret(&new, None, "one", 0.0);
    assert_eq!(changed(&first), None, "it replaced nothing");
    assert_eq!(changed(&secret(&ran, None, "one", 0.0)).as_deref(), Some("2026-03-01T12:00:00Z"), "it was deleted");
    let same = secret(&ran, Some(&first), "one", 10.0);
    assert_eq!(changed(&same), None);
    let second = secret(&ran, Some(&same), "two", 20.0);
    assert_eq!(changed(&second).as_deref(), Some("2026-03-01T12:00:20Z"));
    assert_eq!(changed(&secret(&ran, Some(&second), "two", 30.0)), changed(&second));
    let third = secret(&ran, Some(&second), "three", 20.5);
    assert_eq!(changed(&third).as_deref(), Some("2026-03-01T12:00:21Z"), "two changes are told apart");
    assert!(is_intact(&third));
}
