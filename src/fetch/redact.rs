//! Text of a server's making, before it may stand in a message.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

use crate::text::is_unseen;

/// How much of a text is shown, in characters.
const SHOWN: usize = 200;

/// Knows what was sent in confidence, in the forms in which a server could send it back.
#[derive(Default)]
pub(super) struct Redactor(Vec<Zeroizing<String>>);

impl Redactor {
    /// Hides this from now on: as it is, form-urlencoded and in base64, each also without the spaces around it.
    pub(super) fn hide(&mut self, secret: &str) {
        for secret in [secret, secret.trim()] {
            let encoded = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect::<String>();
            for form in [secret, &encoded, &encoded.replace('+', "%20"), &BASE64_STANDARD.encode(secret)] {
                let form = Zeroizing::new(printable(form));
                if !form.is_empty() && !self.0.contains(&form) {
                    self.0.push(form);
                }
            }
        }
        // A form that holds another one must be replaced first, else its rest stays.
        self.0.sort_by_key(|form| std::cmp::Reverse(form.len()));
    }

    /// The text on one line, printable, without what is hidden, and short.
    pub(super) fn clean(&self, text: &str) -> String {
        let text = self.0.iter().fold(printable(text), |text, form| text.replace(form.as_str(), "***"));
        match text.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    }
}

/// Control characters, and those that reorder or hide text in a terminal, become spaces; spaces are joined.
fn printable(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || is_unseen(c)).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hiding(secret: &str) -> Redactor {
        let mut redactor = Redactor::default();
        redactor.hide(secret);
        redactor
    }

    #[test]
    fn text_is_shown_on_one_line_printable_and_short() {
        let redactor = Redactor::default();
        assert_eq!(redactor.clean("a\r\n b\t\u{1b}[31mc\u{202e}d\0"), "a b [31mc d");
        assert_eq!(redactor.clean(&"ä".repeat(200)), "ä".repeat(200));
        assert_eq!(redactor.clean(&"ä".repeat(201)), "ä".repeat(200) + "…");
    }

    #[test]
    fn what_is_hidden_is_not_shown_in_any_form_in_which_it_was_sent() {
        let redactor = hiding("p ss/w+rd\n");
        for form in ["p ss/w+rd\n", "p ss/w+rd", "p+ss%2Fw%2Brd%0A", "p+ss%2Fw%2Brd", "cCBzcy93K3JkCg==", "p\nss/w+rd"]
        {
            let shown = redactor.clean(&format!("wrong secret '{form}' given"));
            assert!(shown.starts_with("wrong secret '***") && !shown.contains("ss"), "{form}: {shown}");
        }
    }

    #[test]
    fn a_cut_never_leaves_the_beginning_of_what_is_hidden() {
        let shown = hiding("hunter2hunter2").clean(&format!("{}hunter2hunter2", "x".repeat(195)));
        assert!(!shown.contains('h'), "{shown}");
    }

    proptest! {
        #[test]
        fn no_text_shows_what_is_hidden(before in "\\PC{0,20}", secret in "[A-Za-z0-9/+ _\\n-]{8,20}", after in "\\PC{0,20}") {
            let shown = hiding(&secret).clean(&format!("{before}{secret}{after}"));
            let secret = printable(&secret);
            prop_assume!(!secret.is_empty());
            prop_assert!(!shown.contains(&secret), "{}", shown);
        }
    }
}
