#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use proptest::prelude::*;

use super::*;
use crate::fetch::cel::{MAX_BRACKETS, MAX_TEXT};

fn fetched() -> Fetched {
    let values = [("access_token", "hunter2"), ("scope", "a b"), ("n", "3600")];
    Fetched {
        token: Some("hunter2".into()),
        values: values.map(|(name, value)| (name.to_owned(), value.into())).into(),
        expires_at: "2026-01-02T03:04:05.5Z".parse().unwrap(),
        held: Default::default(),
    }
}

fn give(text: &str, fetched: &Fetched) -> Result<String, Failure> {
    let target = Target { data: [("k".to_owned(), text.to_owned())].into(), ..Target::default() };
    let mut data = render(&target, fetched, "cache", "space")?;
    Ok(String::from_utf8(data.remove("k").expect("the key").expose_secret().to_vec()).expect("text"))
}

fn give_bytes(text: &str, fetched: &Fetched) -> Result<usize, Failure> {
    let target = Target { data: [("k".to_owned(), text.to_owned())].into(), ..Target::default() };
    Ok(render(&target, fetched, "cache", "space")?["k"].expose_secret().len())
}

#[test]
fn an_expression_gives_text_or_bytes_made_of_the_value() {
    for (text, expected) in [
        ("token", "hunter2"),
        (" token ", "hunter2"),
        ("'Bearer ' + token", "Bearer hunter2"),
        ("values.scope", "a b"),
        ("values['scope']", "a b"),
        ("has(values.missing) ? values.missing : 'none'", "none"),
        ("'scope' in values ? 'yes' : 'no'", "yes"),
        ("bytes(token)", "hunter2"),
        ("base64.encode(bytes('x:' + token))", "eDpodW50ZXIy"),
        ("string(base64.decode('aGk='))", "hi"),
        ("metadata.namespace + '/' + metadata.name", "space/cache"),
        ("string(expiresAt)", "2026-01-02T03:04:05+00:00"),
        ("expiresAt == null ? 'never' : 'once'", "once"),
        ("string(size(token))", "7"),
        ("values.scope.split(' ').join(',')", "a,b"),
        ("'a-b-c'.split('-', 2).join('+')", "a+b-c"),
        ("'a-b-c'.replace('-', '+')", "a+b+c"),
        ("'a-b-c'.replace('-', '+', 1)", "a+b-c"),
        ("token.upperAscii().substring(0, 6)", "HUNTER"),
        ("int(values.n) > 3000 ? 'long' : 'short'", "long"),
        (
            r#"'{"auths":{"registry.example.com":{"auth":"' + base64.encode(bytes('me:' + token)) + '"}}}'"#,
            r#"{"auths":{"registry.example.com":{"auth":"bWU6aHVudGVyMg=="}}}"#,
        ),
        ("''", ""),
        ("url.encode('a b/c@d~é')", "a%20b%2Fc%40d~%C3%A9"),
        (r#"json.encode({'b': [1, 2.5, null, true], 'a': token + '"'})"#, r#"{"a":"hunter2\"","b":[1,2.5,null,true]}"#),
        (r#"strings.quote('a"\n')"#, r#""a\"\n""#),
        ("string('aéb'.indexOf('b')) + string('aéa'.lastIndexOf('a')) + string('a'.indexOf('x'))", "22-1"),
        ("string('aba'.indexOf('a', 1))", "2"),
        ("'abc'.matches('^[a-c]+$') && 'abc'.contains('bc') ? 'abc'.find('b.') : ''", "bc"),
    ] {
        assert_eq!(give(text, &fetched()).as_deref(), Ok(expected), "{text}");
    }
    let never = Fetched { expires_at: ExpiresAt::Never, ..fetched() };
    assert_eq!(give("expiresAt == null ? 'never' : 'once'", &never).as_deref(), Ok("never"));
}

#[test]
fn without_data_the_secret_holds_the_token() {
    let data = render(&Target::default(), &fetched(), "cache", "space").unwrap();
    assert_eq!(data.keys().collect::<Vec<_>>(), ["token"]);
    assert_eq!(data["token"].expose_secret(), b"hunter2");
}

#[test]
fn what_goes_wrong_is_told_by_the_field_and_never_by_the_value() {
    for (text, words) in [
        ("values.missing", "values has no key missing: it has access_token, n, scope"),
        ("values[token]", "a key is missing"),
        ("{'a': 'b'}[token]", "a key is missing"),
        ("int(token)", "int does not work on this value"),
        ("string(token + 1)", "does not fit"),
        ("token - token", "does not fit"),
        ("token < 1", "does not fit"),
        ("values + 'x'", "does not fit"),
        ("timestamp(token)", "timestamp does not work"),
        ("duration(token)", "duration does not work"),
        ("token.matches(token + '(')", "does not"),
        ("base64.decode(token + '!')", "does not work"),
        ("token.substring(99)", "substring does not work"),
        ("[token][5]", "out of bounds"),
        ("[token].join(1)", "join does not work"),
        ("1 / 0", "divides by zero"),
        ("9223372036854775807 + 1", "too large"),
        ("1", "gives an int, not a string or bytes"),
        ("null", "gives null"),
        ("true", "gives a bool"),
        ("values", "gives a map"),
        ("[token]", "gives a list"),
        ("expiresAt", "gives a timestamp"),
        ("token.x", "token is a string, which has no key x"),
    ] {
        let failure = give(text, &fetched()).expect_err(text);
        assert_eq!(failure.reason, Reason::InvalidResponse, "{text}: {failure}");
        assert!(failure.message.starts_with("spec.target.data[k]: "), "{failure}");
        assert!(failure.message.contains(words), "{text}: {failure}");
        assert!(!failure.message.contains("hunter2"), "{failure}");
    }
    let failure = give("'x' + token", &Fetched { token: None, ..fetched() }).unwrap_err();
    assert!(failure.message.contains("gives no token; values has access_token, n, scope"), "{failure}");
}

#[test]
fn an_expression_that_can_never_work_is_an_invalid_spec() {
    let long = format!("token + '{}'", "x".repeat(4096));
    for (text, words) in [
        ("", "is not CEL"),
        ("token +", "is not CEL"),
        ("token token", "is not CEL"),
        ("secret", "names secret; there are token, values, expiresAt, metadata"),
        ("values[key]", "names key"),
        ("token.evil()", "calls evil; there are base64.decode"),
        ("evil.encode(token)", "calls encode"),
        ("values.map(k, k).join(',')", "loops"),
        ("values.all(k, true) ? 'a' : 'b'", "loops"),
        ("[1].exists(x, x == 1) ? 'a' : 'b'", "loops"),
        ("Secret{data: token}", "builds a message"),
        ("-(-9223372036854775808)", "write 0 - "),
        ("'%s'.format([token])", "calls format"),
        (&long, "longer than 4096 bytes"),
    ] {
        let failure = give(text, &fetched()).expect_err(text);
        assert_eq!(failure.reason, Reason::InvalidSpec, "{text}: {failure}");
        assert!(failure.message.starts_with("spec.target.data[k]: ") && failure.message.contains(words), "{failure}");
    }
}

#[test]
fn nesting_as_deep_as_the_text_allows_is_survived() {
    for (open, close) in [
        ("(", ")"),
        ("[", "]"),
        ("{1:", "}"),
        ("!", ""),
        ("-", ""),
        ("-(", ")"),
        ("string(", ")"),
        ("token+", ""),
        ("1-", ""),
        ("1<", ""),
        ("1||", ""),
        ("true?'a':", ""),
        ("true?", ":'a'"),
        ("", ".a"),
        ("", "[0]"),
        ("", ".trim()"),
        ("", ".map(a,"),
        ("has(", ")"),
    ] {
        let length = open.len() + close.len();
        let most = (MAX_TEXT - 5) / length;
        let bracketed = format!("{open}{close}").contains(['(', '[', '{']);
        for times in if bracketed { [MAX_BRACKETS, most] } else { [most / 2, most] } {
            let text = format!("{}token{}", open.repeat(times), close.repeat(times));
            let unbalanced = open.repeat(times);
            // They may give something or nothing, but they must come back.
            let given = [give(&text, &fetched()), give(&unbalanced, &fetched())];
            assert!(given.iter().flatten().count() < 2, "{open} {close}");
        }
    }
}

#[test]
fn no_expression_grows_beyond_what_a_secret_can_hold() {
    let large = Fetched { token: Some("a".repeat(1 << 20).into()), ..fetched() };
    assert_eq!(give("token", &large).map(|text| text.len()), Ok(1 << 20));
    let failure = give("token + 'a'", &large).unwrap_err();
    assert_eq!(failure.reason, Reason::ResponseTooLarge, "{failure}");
    for text in ["token.replace('a', token)", "token.split('').join(token)", "token.split('').join('')"] {
        let failure = give(text, &large).expect_err(text);
        assert_eq!(failure.reason, Reason::InvalidResponse, "{text}: {failure}");
    }
    let failure = give(&["token"; 40].join(" + "), &large).unwrap_err();
    assert!(failure.message.contains("handles too much"), "{failure}");
    let nested = |open: &str, text: &str, times: usize| {
        let close = ")".repeat(open.matches('(').count() * times);
        format!("{}'{text}'{close}", open.repeat(times))
    };
    for (text, function) in [
        (format!("'aaaaaaaaaa'{}", ".replace('a', 'aaaaaaaaaa')".repeat(20)), "replace"),
        (nested("base64.encode(bytes(", &"x".repeat(1000), 45), "encode"),
        (nested("strings.quote(", "\"", 90), "quote"),
        (nested("json.encode(", "\"", 90), "encode"),
    ] {
        let failure = give(&text, &fetched()).expect_err(&text);
        let words = format!("{function} does not work on this value (what it would give is too large");
        assert!(failure.message.contains(&words), "{failure}");
    }
}

#[test]
fn no_expression_works_for_long_on_what_was_made_for_it() {
    let mut token = "a".repeat(1 << 19);
    token.push('b');
    let values = [("long".to_owned(), "a".repeat(1 << 20).into()), ("short".to_owned(), token.into())].into();
    let large = Fetched { values, ..fetched() };
    // Each of these takes time with the product of the lengths, where it is done naively.
    assert_eq!(give("string(values.long.indexOf(values.short))", &large).as_deref(), Ok("-1"));
    assert_eq!(give("string(values.long.lastIndexOf(values.short))", &large).as_deref(), Ok("-1"));
    assert_eq!(give("values.long.matches('(a|a)*(a|a)*c') ? 'a' : 'b'", &large).as_deref(), Ok("b"));
    for (text, words) in [
        ("bytes(values.long).contains(bytes(values.short)) ? 'a' : 'b'", "contains does not work"),
        ("values.long.matches('(a{1000}){1000}b') ? 'a' : 'b'", "matches does not work"),
        ("values.long.find(values.short)", "find does not work"),
    ] {
        let failure = give(text, &large).expect_err(text);
        assert!(failure.message.contains(words), "{text}: {failure}");
    }
}

fn words() -> impl Strategy<Value = String> {
    let words = [
        "token",
        "values",
        ".scope",
        "['n']",
        "expiresAt",
        "metadata",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "'a'",
        "b'a'",
        "1",
        "1.5",
        "2u",
        "null",
        "true",
        "+",
        "-",
        "*",
        "/",
        "%",
        "==",
        "<",
        "&&",
        "||",
        "!",
        "?",
        ":",
        ",",
        ".",
        "in",
        "has(",
        "string(",
        "size(",
        ".split(",
        ".join(",
        ".replace(",
        ".find(",
        ".matches(",
        ".substring(",
        "int(",
        "timestamp(",
        "duration(",
        "base64.encode(",
        "bytes(",
        ".map(",
        "A{",
        ".getHours(",
        "\"",
        "\\",
        "`",
    ];
    proptest::collection::vec(proptest::sample::select(words.to_vec()), 0..14).prop_map(|words| words.concat())
}

/// Expressions that are mostly well-formed: nested, looping, growing.
fn grammar() -> impl Strategy<Value = String> {
    let leaf = proptest::sample::select(vec![
        "token",
        "values",
        "values.scope",
        "values['n']",
        "expiresAt",
        "metadata.name",
        "'a'",
        "'\\\\'",
        "b'\\xff'",
        "1",
        "-9223372036854775808",
        "18446744073709551615u",
        "1e308",
        "null",
        "true",
        "[]",
        "{}",
        "values.missing",
        "timestamp('9999-12-31T23:59:59Z')",
        "duration('2562047h')",
        "x",
    ]);
    leaf.prop_map(str::to_owned).prop_recursive(6, 40, 3, |inner| {
        let one = inner.clone();
        let unary = proptest::sample::select(vec![
            "base64.encode(bytes(@))",
            "string(base64.decode(@))",
            "strings.quote(@)",
            "json.encode(@)",
            "url.encode(@)",
            "string(@)",
            "int(@)",
            "double(@)",
            "size(@)",
            "bytes(@)",
            "[@]",
            "{'a': @}",
            "{@: 1}",
            "!(@)",
            "-(@)",
            "has((@).a)",
            "(@).a",
            "(@)[0]",
            "(@).trim()",
            "(@).upperAscii()",
            "(@).getDayOfYear()",
            "(@).getHours()",
            "(@).map(x, @)",
            "(@).filter(x, x == @)",
            "(@).all(x, true)",
            "(@).exists(x, x)",
            "timestamp(@)",
            "(@).join('aaaaaaaa')",
            "(@).split('')",
            "(@).replace('', 'aaaaaaaa')",
        ])
        .prop_flat_map(move |form| one.clone().prop_map(move |part| form.replace('@', &part)));
        let binary = proptest::sample::select(vec![
            "(@) + (#)",
            "(@) - (#)",
            "(@) * (#)",
            "(@) / (#)",
            "(@) % (#)",
            "(@) == (#)",
            "(@) < (#)",
            "(@) in (#)",
            "(@) && (#)",
            "(@) || (#)",
            "(@)[#]",
            "(@) ? (#) : (@)",
            "(@).contains(#)",
            "(@).indexOf(#)",
            "(@).lastIndexOf(#)",
            "(@).matches(#)",
            "(@).find(#)",
            "(@).replace(#, @)",
            "(@).substring(#)",
            "(@).charAt(#)",
            "(@).split(#)",
            "(@).join(#)",
            "[@, #]",
            "{@: #}",
        ]);
        let binary = (binary, inner.clone(), inner).prop_map(|(form, a, b)| form.replace('@', &a).replace('#', &b));
        unary.boxed().prop_union(binary.boxed())
    })
}

mod fuzz_tests {
    use super::*;
    use crate::testing::random_input::fuzz;

    #[test]
    fn no_expression_brings_it_down_or_tells_the_value() {
        let mut ran = 0;
        fuzz(prop_oneof![grammar(), words(), "\\PC{0,40}"], |text| match give_bytes(&text, &fetched()) {
            Ok(given) => {
                assert!(given <= MAX_OUTPUT, "{given} bytes");
                ran += 1;
            }
            Err(failure) => {
                assert!(!failure.message.contains("hunter2"), "{failure}");
                // A panic would be met with these words.
                let panicked =
                    ["cannot be compiled", "cannot be evaluated"].map(|said| failure.message.ends_with(said));
                assert_eq!(panicked, [false; 2], "{failure}");
                ran += u32::from(failure.reason == Reason::InvalidResponse);
            }
        });
        assert!(ran > 0, "none of them compiled");
    }
}
