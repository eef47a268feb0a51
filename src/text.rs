//! Text that others wrote, before people see it.

/// Whether a terminal acts on this character, or does not show it: control characters (C0 and C1 of ISO/IEC 6429), and the
/// characters of Unicode that reorder or hide text.
#[must_use]
pub fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// The text with a visible mark, U+FFFD, in place of each character on which a terminal acts. Line breaks stay.
#[must_use]
pub fn visible(text: &str) -> String {
    text.chars().map(|c| if c != '\n' && is_unseen(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// The same on one line.
#[must_use]
pub fn visible_line(text: &str) -> String {
    visible(&text.replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_acts_on_nothing_that_is_shown() {
        let text = "a\u{1b}[2J\u{1b}]0;b\u{7}\u{9b}1mc\u{202e}d\r\te\nf é 日本";
        assert_eq!(visible(text), "a\u{fffd}[2J\u{fffd}]0;b\u{fffd}\u{fffd}1mc\u{fffd}d\u{fffd}\u{fffd}e\nf é 日本");
        assert!(visible_line(text).ends_with("e f é 日本"));
    }
}
