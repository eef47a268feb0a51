//! What was seen of each TokenCache's Secret and Lease, in the order in which it was seen.

use std::collections::BTreeMap;

use crate::support::spans::Span;

/// What a Secret holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Held {
    /// There is no Secret.
    Nothing,
    /// Something that the token server never issued to this cache.
    Foreign,
    /// The value that the token server issued as its so-many-th to this cache, and when that expires by its own book.
    Value { number: usize, expires: f64 },
}

/// The life of one name.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Since when the Secret held what.
    pub held: Vec<(f64, Held)>,
    /// Since when the Lease was held by whom.
    pub holders: Vec<(f64, Option<String>)>,
    /// Since when the state of its job was what.
    pub states: Vec<(f64, u64)>,
}

/// All pages.
pub type Book = BTreeMap<String, Page>;

impl Page {
    /// The Secret was seen.
    pub fn saw(&mut self, at: f64, held: Held) {
        if self.held.last().is_none_or(|(_, last)| *last != held) {
            self.held.push((at, held));
        }
    }

    /// The Lease was seen.
    pub fn saw_holder(&mut self, at: f64, holder: Option<&str>) {
        if self.holders.last().is_none_or(|(_, last)| last.as_deref() != holder) {
            self.holders.push((at, holder.map(str::to_owned)));
        }
    }

    /// The state of its job was seen.
    pub fn saw_state(&mut self, at: f64, state: u64) {
        if self.states.last().is_none_or(|(_, last)| *last != state) {
            self.states.push((at, state));
        }
    }

    /// When the Secret held a value that had expired, until `end`.
    pub fn expired(&self, end: f64) -> Vec<Span> {
        let ends = self.held.iter().skip(1).map(|(at, _)| *at).chain([end]);
        let spans = self.held.iter().zip(ends).filter_map(|((at, held), until)| match held {
            Held::Value { expires, .. } => Some(Span::new(at.max(*expires), until)),
            Held::Nothing | Held::Foreign => None,
        });
        spans.filter(|span| span.length() > 0.0).collect()
    }

    /// When a value or a state was followed by an older one, and their numbers.
    pub fn older(&self) -> Vec<(f64, usize, usize)> {
        let mut newest = 0;
        let mut older = Vec::new();
        for (at, held) in &self.held {
            if let Held::Value { number, .. } = held {
                if *number < newest {
                    older.push((*at, newest, *number));
                }
                newest = newest.max(*number);
            }
        }
        older.extend(self.states.windows(2).filter_map(|pair| {
            let [(_, before), (at, after)] = *pair else { return None };
            (after < before).then_some((at, usize::try_from(before).ok()?, usize::try_from(after).ok()?))
        }));
        older
    }

    /// Who held the Lease, and when.
    pub fn holds(&self, end: f64) -> Vec<(&str, Span)> {
        let ends = self.holders.iter().skip(1).map(|(at, _)| *at).chain([end]);
        let holds = self.holders.iter().zip(ends);
        holds.filter_map(|((at, holder), until)| Some((holder.as_deref()?, Span::new(*at, until)))).collect()
    }
}

#[test]
fn a_value_counts_as_expired_from_its_end_until_it_is_replaced() {
    let mut page = Page::default();
    page.saw(0.0, Held::Value { number: 1, expires: 5.0 });
    page.saw(7.0, Held::Value { number: 2, expires: 12.0 });
    page.saw(8.0, Held::Foreign);
    page.saw(9.0, Held::Value { number: 1, expires: 5.0 });
    page.saw(10.0, Held::Nothing);
    assert_eq!(page.expired(20.0), [Span::new(5.0, 7.0), Span::new(9.0, 10.0)]);
    assert_eq!(page.older(), [(9.0, 2, 1)]);
    [(1.0, 4), (2.0, 5), (3.0, 4)].into_iter().for_each(|(at, state)| page.saw_state(at, state));
    assert_eq!(page.older(), [(9.0, 2, 1), (3.0, 5, 4)]);
}
