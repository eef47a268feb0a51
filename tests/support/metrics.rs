//! A controller's metrics, as text.

/// What `/metrics` answered.
pub struct Metrics(pub String);

impl Metrics {
    /// Requests to the API server so far, of this verb and for these objects.
    pub fn requests(&self, verb: &str, resource: &str) -> f64 {
        self.sum("tokencache_api_requests_total", &[("verb", verb), ("resource", resource)])
    }

    /// Acquisitions of Leases that ended like this.
    pub fn acquisitions(&self, outcome: &str) -> f64 {
        self.sum("tokencache_lock_acquisitions_total", &[("outcome", outcome)])
    }

    /// Sum of all samples of that name which bear these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.0
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let (series, value) = line.rsplit_once(' ')?;
                let (found, rest) = series.split_once('{').unwrap_or((series, ""));
                let bears = |(key, value): &(&str, &str)| {
                    rest.trim_end_matches('}').split(',').any(|label| label == format!("{key}=\"{value}\""))
                };
                (found == name && labels.iter().all(bears)).then(|| value.parse::<f64>().ok()).flatten()
            })
            .sum()
    }

    /// Requests to the API server with one of these verbs.
    pub fn api_requests(&self, verbs: &[&str]) -> f64 {
        verbs.iter().map(|verb| self.sum("tokencache_api_requests_total", &[("verb", verb)])).sum()
    }

    /// Requests that change something in the cluster.
    pub fn writes(&self) -> f64 {
        self.api_requests(&["create", "update", "patch", "delete"])
    }

    /// Requests that read, but for watches.
    pub fn reads(&self) -> f64 {
        self.api_requests(&["get", "list"])
    }
}
