//! Stretches of time, in seconds since the beginning.

/// From a moment until before another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// Its beginning.
    pub from: f64,
    /// Its end; infinite while it goes on.
    pub to: f64,
}

impl Span {
    /// A new one.
    pub fn new(from: f64, to: f64) -> Self {
        Self { from, to }
    }

    /// Its length; zero for one that ends before it begins.
    pub fn length(self) -> f64 {
        (self.to - self.from).max(0.0)
    }

    /// The same with a later end.
    pub fn and(self, more: f64) -> Self {
        Self { to: self.to + more, ..self }
    }

    /// Whether they have a moment in common.
    pub fn meets(self, other: Self) -> bool {
        self.from < other.to && other.from < self.to
    }

    /// Whether it has this moment.
    pub fn has(self, moment: f64) -> bool {
        self.from <= moment && moment < self.to
    }

    /// What is left of it without these.
    pub fn without(self, others: &[Self]) -> Vec<Self> {
        let cut = |left: Vec<Self>, other: &Self| {
            let parts = left.into_iter().flat_map(|span| {
                [Self::new(span.from, span.to.min(other.from)), Self::new(span.from.max(other.to), span.to)]
            });
            parts.filter(|part| part.length() > 0.0).collect()
        };
        others.iter().fold(vec![self], cut)
    }
}

/// The stretches that are in each of these lists.
pub fn common(lists: &[Vec<Span>]) -> Vec<Span> {
    let all = vec![Span::new(f64::NEG_INFINITY, f64::INFINITY)];
    lists.iter().fold(all, |common, list| {
        let pairs = common.iter().flat_map(|span| list.iter().map(move |other| (span, other)));
        let both = pairs.map(|(span, other)| Span::new(span.from.max(other.from), span.to.min(other.to)));
        both.filter(|span| span.from < span.to).collect()
    })
}

/// The stretches that are in any of these, in order and apart.
pub fn union(spans: &[Span]) -> Vec<Span> {
    let mut spans: Vec<Span> = spans.iter().copied().filter(|span| span.length() > 0.0).collect();
    spans.sort_by(|a, b| a.from.total_cmp(&b.from));
    let mut union: Vec<Span> = Vec::new();
    for span in spans {
        match union.last_mut() {
            Some(last) if span.from <= last.to => last.to = last.to.max(span.to),
            _ => union.push(span),
        }
    }
    union
}

#[test]
fn what_is_left_of_a_span_is_what_no_other_covers() {
    let span = Span::new(0.0, 10.0);
    let others = [Span::new(2.0, 3.0), Span::new(2.5, 4.0), Span::new(9.0, f64::INFINITY)];
    assert_eq!(span.without(&others), [Span::new(0.0, 2.0), Span::new(4.0, 9.0)]);
    assert_eq!(span.without(&[Span::new(-1.0, 20.0)]), []);
}

#[test]
fn the_common_stretches_are_in_all_lists() {
    let lists = [vec![Span::new(0.0, 5.0), Span::new(7.0, 9.0)], vec![Span::new(4.0, 8.0)]];
    assert_eq!(common(&lists), [Span::new(4.0, 5.0), Span::new(7.0, 8.0)]);
    assert_eq!(common(&[lists[0].clone(), Vec::new()]), []);
}

#[test]
fn the_union_has_each_moment_once() {
    let spans = [Span::new(4.0, 6.0), Span::new(0.0, 2.0), Span::new(1.0, 3.0), Span::new(9.0, 8.0)];
    assert_eq!(union(&spans), [Span::new(0.0, 3.0), Span::new(4.0, 6.0)]);
}
