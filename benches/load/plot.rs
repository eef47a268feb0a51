//! Curves as an SVG, one panel for each, with linear axes from zero.

use std::fmt::Write as _;

/// Points, and what they show.
pub struct Curve {
    /// What is measured.
    pub title: String,
    /// In which unit.
    pub unit: String,
    /// Number of TokenCaches, and the value.
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 200.0;
/// Around each panel, for axes and titles.
const MARGIN: f64 = 50.0;

/// The panels side by side.
pub fn svg(curves: &[Curve]) -> String {
    let (width, height) = ((WIDTH + 2.0 * MARGIN) * curves.len() as f64, HEIGHT + 2.0 * MARGIN);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    for (number, curve) in curves.iter().enumerate() {
        let left = (WIDTH + 2.0 * MARGIN) * number as f64 + MARGIN;
        let _ = writeln!(text, "<g transform=\"translate({left} {MARGIN})\">");
        panel(&mut text, curve);
        text += "</g>\n";
    }
    text + "</svg>\n"
}

fn panel(text: &mut String, Curve { title, unit, points }: &Curve) {
    let most = |pick: fn(&(f64, f64)) -> f64| points.iter().map(pick).fold(0.0, f64::max);
    let (right, top) = (round_up(most(|point| point.0)), round_up(most(|point| point.1)));
    let (x, y) = (|count: f64| count / right * WIDTH, |value: f64| HEIGHT - value / top * HEIGHT);
    let _ = writeln!(text, "<text x=\"0\" y=\"-20\" font-weight=\"bold\">{title}, {unit}</text>");
    for step in 0..=4 {
        let (count, value) = (right / 4.0 * f64::from(step), top / 4.0 * f64::from(step));
        let (across, up) = (x(count), y(value));
        let _ = writeln!(
            text,
            "<path d=\"M0 {up:.1}H{WIDTH}\" stroke=\"#ddd\"/><text x=\"-6\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>\n\
             <text x=\"{across:.1}\" y=\"{}\" text-anchor=\"middle\">{count}</text>",
            up + 4.0,
            HEIGHT + 18.0
        );
    }
    let _ =
        writeln!(text, "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">TokenCaches</text>", WIDTH / 2.0, HEIGHT + 38.0);
    let line: Vec<String> = points.iter().map(|(count, value)| format!("{:.1} {:.1}", x(*count), y(*value))).collect();
    let _ = writeln!(text, "<path d=\"M{}\" fill=\"none\" stroke=\"#06c\" stroke-width=\"2\"/>", line.join("L"));
    for (count, value) in points {
        let (across, up) = (x(*count), y(*value));
        let _ = writeln!(
            text,
            "<circle cx=\"{across:.1}\" cy=\"{up:.1}\" r=\"3\" fill=\"#06c\"><title>{count}: {value:.1} {unit}</title></circle>"
        );
    }
}

/// The next number whose quarters are round.
fn round_up(most: f64) -> f64 {
    let power = 10_f64.powf(most.max(1e-3).log10().floor());
    [1.0, 2.0, 4.0, 6.0, 8.0, 10.0].into_iter().map(|step| step * power).find(|round| *round >= most).unwrap_or(most)
}
