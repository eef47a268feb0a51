//! The text formats of metrics: which one a client accepts, and the older one made of the newer one.

use std::fmt::{self, Write};

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.0, which `prometheus-client` writes.
    OpenMetrics,
    /// Prometheus' own format, version 0.0.4, which every scraper reads.
    Prometheus,
}

impl Format {
    /// The format for a request with these `Accept` headers. OpenMetrics has to be named in them: a wildcard, or no header
    /// at all, gets the format that every scraper reads.
    #[must_use]
    pub fn preferred<'a>(accept: impl IntoIterator<Item = &'a str>) -> Self {
        // The most specific range counts, as RFC 9110 §12.5.1 has it.
        let (mut open_metrics, mut prometheus) = (None, None);
        for range in accept.into_iter().flat_map(|header| header.split(',')).filter_map(Range::parse) {
            let weight = Some((range.specificity(), range.weight));
            match (range.media_type.as_str(), range.version.as_deref()) {
                ("application/openmetrics-text", None | Some("1.0.0")) => open_metrics = open_metrics.max(weight),
                ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", None) => prometheus = prometheus.max(weight),
                _ => {}
            }
        }
        let weight = |range: Option<(u8, u16)>| range.map_or(0, |(_, weight)| weight);
        match weight(open_metrics) {
            named if named > 0 && named >= weight(prometheus) => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    /// Its `Content-Type`.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// One media range of an `Accept` header.
struct Range {
    media_type: String,
    version: Option<String>,
    /// In thousandths.
    weight: u16,
}

impl Range {
    /// Nothing, if its weight is not one.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let mut range = Self { media_type: parts.next()?.to_ascii_lowercase(), version: None, weight: 1000 };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim().to_ascii_lowercase().as_str() {
                "q" => {
                    let weight = value.trim().parse::<f32>().ok().filter(|weight| (0.0..=1.0).contains(weight))?;
                    range.weight = (weight * 1000.0).round() as u16;
                }
                "version" => range.version = Some(value.trim().trim_matches('"').to_owned()),
                _ => {}
            }
        }
        Some(range)
    }

    fn specificity(&self) -> u8 {
        match (self.media_type.as_str(), &self.version) {
            ("*/*", _) => 0,
            (media_type, _) if media_type.ends_with("/*") => 1,
            (_, None) => 2,
            (_, Some(_)) => 3,
        }
    }
}

/// Writes OpenMetrics down in Prometheus' format 0.0.4, a line at a time. The samples are the same; what differs is how
/// families are described: by the name of their samples, without units, and with fewer types.
#[derive(Default)]
pub(super) struct PrometheusWriter {
    written: String,
    line: String,
    help: String,
}

impl PrometheusWriter {
    /// All that was written.
    pub(super) fn into_text(self) -> String {
        self.written
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if let Some(help) = line.strip_prefix("# HELP ") {
            // It bears a name that only the type decides, which stands in the next line.
            help.clone_into(&mut self.help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "stateset" => ("", "gauge"),
                "gaugehistogram" => ("", "histogram"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            if let Some(help) = std::mem::take(&mut self.help).strip_prefix(name) {
                self.push_line(&format!("# HELP {name}{suffix}{help}"));
            }
            self.push_line(&format!("# TYPE {name}{suffix} {kind}"));
        } else if !line.starts_with('#') {
            self.push_line(&line);
        }
        self.line = line;
        self.line.clear();
    }

    fn push_line(&mut self, line: &str) {
        self.written.push_str(line);
        self.written.push('\n');
    }
}

impl Write for PrometheusWriter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((end, following)) = rest.split_once('\n') {
            self.line.push_str(end);
            self.end_line();
            rest = following;
        }
        self.line.push_str(rest);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_for_those_that_name_it_and_prefer_no_other() {
        use Format::{OpenMetrics, Prometheus};
        const PROMETHEUS_2: &str = "application/openmetrics-text;version=1.0.0,\
            application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        const PROMETHEUS_3: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
            application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
            text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for (accept, expected) in [
            (&[][..], Prometheus),
            (&[""], Prometheus),
            (&["*/*"], Prometheus),
            (&["application/*"], Prometheus),
            (&["application/json"], Prometheus),
            (&["text/plain"], Prometheus),
            (&["text/plain;version=0.0.4"], Prometheus),
            (&[PROMETHEUS_2], OpenMetrics),
            (&[PROMETHEUS_3], OpenMetrics),
            (&["application/openmetrics-text"], OpenMetrics),
            (&["Application/OpenMetrics-Text; Version=\"1.0.0\"; charset=utf-8"], OpenMetrics),
            (&["application/openmetrics-text; version=0.0.1"], Prometheus),
            (&["application/openmetrics-text; version=2.0.0"], Prometheus),
            (&["application/openmetrics-text;q=0"], Prometheus),
            (&["application/openmetrics-text;q=0.000,*/*"], Prometheus),
            (&["application/openmetrics-text;q=much"], Prometheus),
            (&["application/openmetrics-text;q=7"], Prometheus),
            (&["application/openmetrics-text, text/plain"], OpenMetrics),
            (&["application/openmetrics-text;q=0.5, text/plain;q=0.6"], Prometheus),
            (&["application/openmetrics-text;q=0.6, text/plain;q=0.5"], OpenMetrics),
            (&["application/openmetrics-text;q=0.5, */*"], Prometheus),
            (&["application/openmetrics-text;q=0.5, text/plain;q=0.4, */*;q=1.0"], OpenMetrics),
            (&["text/plain;q=0.5", "application/openmetrics-text"], OpenMetrics),
            (&["text/plain;q=0,application/openmetrics-text;q=0.001"], OpenMetrics),
        ] {
            assert_eq!(Format::preferred(accept.iter().copied()), expected, "{accept:?}");
        }
    }

    #[test]
    fn families_are_described_by_the_names_of_their_samples() {
        let mut writer = PrometheusWriter::default();
        let text = "# HELP x_fetches Fetches.\n# TYPE x_fetches counter\nx_fetches_total{a=\"# b c\"} 1\n\
            # HELP x_build The version.\n# TYPE x_build info\nx_build_info{version=\"1\"} 1\n\
            # HELP x_took_seconds How long.\n# TYPE x_took_seconds histogram\n# UNIT x_took_seconds seconds\n\
            x_took_seconds_bucket{le=\"+Inf\"} 0\n# TYPE x_bare unknown\nx_bare 1\n# EOF\n";
        // Whatever the pieces are.
        for piece in text.as_bytes().chunks(3) {
            writer.write_str(std::str::from_utf8(piece).unwrap()).unwrap();
        }
        let expected = "# HELP x_fetches_total Fetches.\n# TYPE x_fetches_total counter\n\
            x_fetches_total{a=\"# b c\"} 1\n# HELP x_build_info The version.\n# TYPE x_build_info gauge\n\
            x_build_info{version=\"1\"} 1\n# HELP x_took_seconds How long.\n# TYPE x_took_seconds histogram\n\
            x_took_seconds_bucket{le=\"+Inf\"} 0\n# TYPE x_bare untyped\nx_bare 1\n";
        assert_eq!(writer.into_text(), expected);
    }
}
