//! The three pictures of a page, as SVG.
//!
//! Invariant: a picture is as wide for one value as for ten thousand, and a value that is not finite is drawn at
//! the upper edge, never left out.

use crate::checks::gates::Thresholds;
use crate::report::LinearFigures;
use crate::report::junit::escape;
use std::fmt::Write;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 240.0;
/// Room for the labels of the vertical axis, and below for those of the other.
const LEFT: f64 = 52.0;
const BELOW: f64 = 22.0;
const ABOVE: f64 = 8.0;

/// Decades of a logarithmic vertical axis.
struct Decades {
    low: i32,
    high: i32,
}

impl Decades {
    /// Around all values that are positive and finite.
    fn around(values: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for v in values.filter(|v| v.is_finite() && *v > 0.0) {
            (low, high) = (low.min(v.log10()), high.max(v.log10()));
        }
        if low > high {
            (low, high) = (-1.0, 0.0);
        }
        let low = low.floor() as i32;
        Self {
            low,
            high: (high.ceil() as i32).max(low + 1),
        }
    }

    fn y(&self, value: f64) -> f64 {
        let share = match value {
            v if v.is_nan() || v == f64::INFINITY => 1.0,
            v if v <= 0.0 => 0.0,
            v => (v.log10() - f64::from(self.low)) / f64::from(self.high - self.low),
        };
        ABOVE + (1.0 - share.clamp(0.0, 1.0)) * (HEIGHT - ABOVE - BELOW)
    }

    fn axis(&self, svg: &mut String) {
        let step = ((self.high - self.low) / 8).max(1);
        for decade in (self.low..=self.high).step_by(step as usize) {
            let y = self.y(10f64.powi(decade));
            line(svg, "axis", [LEFT, y, WIDTH, y]);
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">1e{decade}</text>",
                LEFT - 6.0,
                y + 4.0
            );
        }
    }
}

fn open(label: &str) -> String {
    format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{label}\">\n")
}

fn line(svg: &mut String, class: &str, [x1, y1, x2, y2]: [f64; 4]) {
    let _ = writeln!(
        svg,
        "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
    );
}

fn below(svg: &mut String, x: f64, anchor: &str, text: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
        HEIGHT - 6.0,
        escape(text)
    );
}

/// Left edge and width of the place of value `i` of `n`.
fn place(i: usize, n: usize) -> (f64, f64) {
    let width = (WIDTH - LEFT) / n.max(1) as f64;
    (LEFT + i as f64 * width, width)
}

/// Relative error of each layer, with the bounds.
pub(super) fn layers(errors: &[f64], thresholds: &Thresholds) -> String {
    let bounds = [thresholds.typical_layer_error, thresholds.layer_error];
    let decades = Decades::around(errors.iter().copied().chain(bounds));
    let mut svg = open("relative error of each layer");
    decades.axis(&mut svg);
    for (class, bound) in ["typical", "bound"].into_iter().zip(bounds) {
        let y = decades.y(bound);
        line(&mut svg, class, [LEFT, y, WIDTH, y]);
    }
    let at = |i: usize| {
        let (x, width) = place(i, errors.len());
        (x + width / 2.0, decades.y(errors[i]))
    };
    let curve: Vec<String> = (0..errors.len())
        .map(|i| format!("{:.1},{:.1}", at(i).0, at(i).1))
        .collect();
    let _ = writeln!(
        svg,
        "<polyline class=\"curve\" points=\"{}\"/>",
        curve.join(" ")
    );
    for (i, error) in errors.iter().enumerate() {
        let (x, y) = at(i);
        let _ = writeln!(
            svg,
            "<circle class=\"point\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"><title>layer {i}: {error:.2e}</title></circle>"
        );
    }
    below(&mut svg, LEFT, "start", "layer 0");
    if let Some(last @ 1..) = errors.len().checked_sub(1) {
        below(&mut svg, WIDTH, "end", &format!("layer {last}"));
    }
    svg.push_str("</svg>\n");
    svg
}

/// Shares of the trits of each linear, one column each.
pub(super) fn trits(linears: &[LinearFigures]) -> String {
    let mut svg = open("shares of -1, 0 and +1 in each linear");
    let height = HEIGHT - ABOVE - BELOW;
    for (i, linear) in linears.iter().enumerate() {
        let (x, width) = place(i, linears.len());
        // columns touch when there are many
        let gap = if width > 6.0 { 1.0 } else { 0.0 };
        let total = linear.trits.iter().sum::<u64>().max(1) as f64;
        let mut top = ABOVE;
        for (class, count) in ["plus", "zero", "minus"]
            .into_iter()
            .zip(linear.trits.iter().rev())
        {
            let share = *count as f64 / total;
            let _ = writeln!(
                svg,
                "<rect class=\"{class}\" x=\"{x:.2}\" y=\"{top:.2}\" width=\"{:.2}\" height=\"{:.2}\"><title>{}: {:.2} % of {class}</title></rect>",
                width - gap,
                share * height,
                escape(&linear.name),
                100.0 * share
            );
            top += share * height;
        }
    }
    for (share, label) in [(0.0, "100 %"), (0.5, "50 %"), (1.0, "0 %")] {
        let y = ABOVE + share * height + 4.0;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{y:.1}\" text-anchor=\"end\">{label}</text>",
            LEFT - 6.0
        );
    }
    ends(&mut svg, linears);
    svg.push_str("</svg>\n");
    svg
}

/// Scales of each linear, from the smallest to the largest.
pub(super) fn scales(linears: &[LinearFigures]) -> String {
    let magnitudes = linears
        .iter()
        .flat_map(|l| l.scales)
        .map(|s| f64::from(s.abs()));
    let decades = Decades::around(magnitudes);
    let mut svg = open("scales of each linear");
    decades.axis(&mut svg);
    for (i, linear) in linears.iter().enumerate() {
        let (x, width) = place(i, linears.len());
        let x = x + width / 2.0;
        let [low, median, high] = linear.scales.map(|s| decades.y(f64::from(s.abs())));
        line(&mut svg, "range", [x, low, x, high]);
        let _ = writeln!(
            svg,
            "<circle class=\"median\" cx=\"{x:.1}\" cy=\"{median:.1}\" r=\"2.5\"><title>{}: {:e} to {:e}, median {:e}</title></circle>",
            escape(&linear.name),
            linear.scales[0],
            linear.scales[2],
            linear.scales[1]
        );
    }
    ends(&mut svg, linears);
    svg.push_str("</svg>\n");
    svg
}

/// The names of the first and the last linear.
fn ends(svg: &mut String, linears: &[LinearFigures]) {
    if let [first, .., last] = linears {
        below(svg, LEFT, "start", &first.name);
        below(svg, WIDTH, "end", &last.name);
    }
}
