//! The three pictures of a page, as SVG.
//!
//! Invariant: a picture is as wide for one value as for ten thousand, and a value that is not finite is drawn at
//! the upper edge, never left out.

use super::super::printable;
use crate::checks::report::LinearFigures;
use crate::reference::thresholds::Thresholds;
use maud::{Markup, html};

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
        // of a positive f64 between -324 and 309
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

    fn axis(&self) -> Markup {
        let step = ((self.high - self.low) / 8).max(1);
        let decades = (self.low..=self.high).step_by(step as usize);
        html! {
            @for decade in decades {
                @let y = self.y(10f64.powi(decade));
                (line("axis", [LEFT, y, WIDTH, y]))
                (beside(y, &format!("1e{decade}")))
            }
        }
    }
}

/// A picture with this content.
fn picture(label: &str, content: &Markup) -> Markup {
    html! {
        svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label=(label) { (content) }
    }
}

fn line(class: &str, ends: [f64; 4]) -> Markup {
    let [x1, y1, x2, y2] = ends.map(|end| format!("{end:.1}"));
    html! { line class=(class) x1=(x1) y1=(y1) x2=(x2) y2=(y2) {} }
}

/// A label of the vertical axis.
fn beside(y: f64, label: &str) -> Markup {
    html! {
        text x=(LEFT - 6.0) y=(format!("{:.1}", y + 4.0)) text-anchor="end" { (label) }
    }
}

/// A label of the other axis.
fn below(x: f64, anchor: &str, label: &str) -> Markup {
    html! {
        text x=(format!("{x:.1}")) y=(HEIGHT - 6.0) text-anchor=(anchor) { (printable(label)) }
    }
}

/// Left edge and width of the place of value `i` of `n`.
fn place(i: usize, n: usize) -> (f64, f64) {
    let width = (WIDTH - LEFT) / n.max(1) as f64;
    (LEFT + i as f64 * width, width)
}

/// Relative error of each layer, with the bounds.
pub(super) fn layers(errors: &[f64], thresholds: &Thresholds) -> Markup {
    let bounds = [thresholds.typical_layer_error, thresholds.layer_error];
    let decades = Decades::around(errors.iter().copied().chain(bounds));
    let at = |(i, error): (usize, &f64)| {
        let (x, width) = place(i, errors.len());
        let (x, y) = (x + width / 2.0, decades.y(*error));
        (format!("{x:.1}"), format!("{y:.1}"))
    };
    let points = errors.iter().enumerate();
    let curve = points.clone().map(at).map(|(x, y)| format!("{x},{y}"));
    let curve: Vec<String> = curve.collect();
    let content = html! {
        (decades.axis())
        @for (class, bound) in ["typical", "bound"].into_iter().zip(bounds) {
            @let y = decades.y(bound);
            (line(class, [LEFT, y, WIDTH, y]))
        }
        polyline class="curve" points=(curve.join(" ")) {}
        @for (i, error) in points {
            @let (x, y) = at((i, error));
            circle class="point" cx=(x) cy=(y) r="3.5" {
                title { (format!("layer {i}: {error:.2e}")) }
            }
        }
        (below(LEFT, "start", "layer 0"))
        @if let Some(last @ 1..) = errors.len().checked_sub(1) {
            (below(WIDTH, "end", &format!("layer {last}")))
        }
    };
    picture("relative error of each layer", &content)
}

/// Shares of the trits of each linear, one column each.
pub(super) fn trits(linears: &[LinearFigures]) -> Markup {
    let height = HEIGHT - ABOVE - BELOW;
    let column = |(i, linear): (usize, &LinearFigures)| {
        let (x, width) = place(i, linears.len());
        // columns touch when there are many
        let gap = if width > 6.0 { 1.0 } else { 0.0 };
        let total = linear.trits.iter().sum::<u64>().max(1) as f64;
        let mut top = ABOVE;
        let classes = ["plus", "zero", "minus"].into_iter();
        let parts = classes.zip(linear.trits.iter().rev());
        let parts = parts.map(|(class, count)| {
            let share = *count as f64 / total;
            let y = top;
            top += share * height;
            (class, share, y)
        });
        html! {
            @for (class, share, y) in parts {
                rect class=(class) x=(format!("{x:.2}")) y=(format!("{y:.2}"))
                    width=(format!("{:.2}", width - gap)) height=(format!("{:.2}", share * height)) {
                    title {
                        (printable(&linear.name)) ": " (format!("{:.2}", 100.0 * share)) " % of " (class)
                    }
                }
            }
        }
    };
    let content = html! {
        @for (i, linear) in linears.iter().enumerate() { (column((i, linear))) }
        @for (share, label) in [(0.0, "100 %"), (0.5, "50 %"), (1.0, "0 %")] {
            (beside(ABOVE + share * height, label))
        }
        (ends(linears))
    };
    picture("shares of -1, 0 and +1 in each linear", &content)
}

/// Scales of each linear, from the smallest to the largest.
pub(super) fn scales(linears: &[LinearFigures]) -> Markup {
    let magnitudes = linears
        .iter()
        .flat_map(|l| l.scales)
        .map(|s| f64::from(s.abs()));
    let decades = Decades::around(magnitudes);
    let content = html! {
        (decades.axis())
        @for (i, linear) in linears.iter().enumerate() {
            @let (x, width) = place(i, linears.len());
            @let x = x + width / 2.0;
            @let [low, median, high] = linear.scales.map(|s| decades.y(f64::from(s.abs())));
            @let [least, middle, most] = linear.scales;
            (line("range", [x, low, x, high]))
            circle class="median" cx=(format!("{x:.1}")) cy=(format!("{median:.1}")) r="2.5" {
                title {
                    (printable(&linear.name)) (format!(": {least:e} to {most:e}, median {middle:e}"))
                }
            }
        }
        (ends(linears))
    };
    picture("scales of each linear", &content)
}

/// The names of the first and the last linear.
fn ends(linears: &[LinearFigures]) -> Markup {
    html! {
        @if let [first, .., last] = linears {
            (below(LEFT, "start", &first.name))
            (below(WIDTH, "end", &last.name))
        }
    }
}
