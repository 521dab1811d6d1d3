//! The pictures of a page, as SVG.
//!
//! Invariant: widths are shares of the page and heights are pixels, so labels and lines are as large on a telephone as
//! on a desk. A value that is not finite is drawn at the upper edge, never left out. A linear that differs is marked in every picture.

use super::super::printable;
use crate::checks::report::{LinearFigures, MatrixFigures};
use crate::reference::thresholds::Thresholds;
use maud::{Markup, html};
use std::collections::BTreeSet;

/// Height of a picture of a logarithmic axis, and of a picture of shares.
const HIGH: f64 = 220.0;
const LOW: f64 = 110.0;
/// Room for half a label above the upper edge and below the lower one.
const EDGE: f64 = 8.0;
/// Narrower columns cannot be told apart: the picture scrolls instead.
const NARROWEST: usize = 4;

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
        EDGE + (1.0 - share.clamp(0.0, 1.0)) * (HIGH - 2.0 * EDGE)
    }

    /// Height and label of each line.
    fn lines(&self) -> Vec<(f64, String)> {
        let step = ((self.high - self.low) / 8).max(1);
        let decades = (self.low..=self.high).step_by(step as usize);
        decades
            .map(|decade| (self.y(10f64.powi(decade)), format!("1e{decade}")))
            .collect()
    }
}

/// A picture: the labels of its vertical axis, its content, and what stands below its two ends.
struct Picture<'a> {
    label: &'a str,
    height: f64,
    lines: Vec<(f64, String)>,
    content: Markup,
    columns: usize,
    ends: [&'a str; 2],
}

impl Picture<'_> {
    fn draw(self) -> Markup {
        let Self {
            label,
            height,
            lines,
            content,
            columns,
            ends,
        } = self;
        let width = columns.saturating_mul(NARROWEST);
        html! {
            div .chart {
                svg .scale width="44" height=(height) aria-hidden="true" {
                    @for (y, label) in &lines {
                        text x="38" y=(format!("{:.1}", y + 4.0)) text-anchor="end" { (label) }
                    }
                }
                div .scroll {
                    svg .plot height=(height) style={ "min-width:" (width) "px" } role="img" aria-label=(label) {
                        @for (y, _) in &lines { (line("axis", ["0%".into(), pixel(*y), "100%".into(), pixel(*y)])) }
                        (content)
                    }
                }
                div .ends {
                    @for end in ends { span { (printable(end)) } }
                }
            }
        }
    }
}

fn pixel(y: f64) -> String {
    format!("{y:.1}")
}

fn percent(share: f64) -> String {
    format!("{:.3}%", 100.0 * share)
}

fn line(class: &str, ends: [String; 4]) -> Markup {
    let [x1, y1, x2, y2] = ends;
    html! { line class=(class) x1=(x1) y1=(y1) x2=(x2) y2=(y2) {} }
}

/// Where value `i` of `n` stands, at a share of its column.
fn at(i: usize, n: usize, share: f64) -> f64 {
    (i as f64 + share) / n.max(1) as f64
}

/// The mark of column `i` of `n`: a band over the whole height, and a bar below it that is seen in any color.
fn mark(i: usize, n: usize, height: f64, what: &str) -> Markup {
    let (x, width) = (percent(at(i, n, 0.0)), percent(1.0 / n.max(1) as f64));
    html! {
        rect .band x=(x) y="0" width=(width) height=(height) {
            title { (printable(what)) " differs" }
        }
        rect .bar x=(x) y=(height - 5.0) width=(width) height="5" {}
    }
}

/// Relative error of each layer, with the bounds; layers with a linear that differs are marked.
pub(super) fn layers(
    errors: &[f64],
    thresholds: &Thresholds,
    differing: &BTreeSet<usize>,
) -> Markup {
    let bounds = [thresholds.typical_layer_error, thresholds.layer_error];
    let decades = Decades::around(errors.iter().copied().chain(bounds));
    let n = errors.len();
    let place = |(i, error): (usize, &f64)| (percent(at(i, n, 0.5)), pixel(decades.y(*error)));
    let points: Vec<(String, String)> = errors.iter().enumerate().map(place).collect();
    let content = html! {
        @for layer in differing.iter().filter(|layer| **layer < n) {
            (mark(*layer, n, HIGH, &format!("layer {layer}")))
        }
        @for (class, bound) in ["typical", "bound"].into_iter().zip(bounds) {
            @let y = pixel(decades.y(bound));
            (line(class, ["0%".into(), y.clone(), "100%".into(), y]))
        }
        @for (from, to) in points.iter().zip(points.iter().skip(1)) {
            (line("curve", [from.0.clone(), from.1.clone(), to.0.clone(), to.1.clone()]))
        }
        @for (i, ((x, y), error)) in points.iter().zip(errors).enumerate() {
            circle .point cx=(x) cy=(y) r="3.5" {
                title { (format!("layer {i}: {error:.2e}")) }
            }
        }
    };
    let last = match n {
        0 | 1 => String::new(),
        n => format!("layer {}", n - 1),
    };
    let picture = Picture {
        label: "relative error of each layer",
        height: HIGH,
        lines: decades.lines(),
        content,
        columns: n,
        ends: ["layer 0", &last],
    };
    picture.draw()
}

/// Shares of the trits of each linear, one column each; the source's above the artifact's.
pub(super) fn trits(linears: &[LinearFigures], differing: &BTreeSet<&str>) -> Markup {
    let sources: Vec<MatrixFigures> = linears.iter().filter_map(|l| l.source).collect();
    let artifacts: Vec<MatrixFigures> = linears.iter().map(|l| l.artifact).collect();
    let has_source = sources.len() == linears.len();
    html! {
        @if has_source {
            h3 { "Source" }
            (shares(linears, &sources, " (source)", differing))
            h3 { "Artifact" }
        }
        (shares(linears, &artifacts, "", differing))
    }
}

fn shares(
    linears: &[LinearFigures],
    figures: &[MatrixFigures],
    side: &str,
    differing: &BTreeSet<&str>,
) -> Markup {
    let (n, height) = (linears.len(), LOW - 2.0 * EDGE);
    let column = |(i, (linear, figures)): (usize, (&LinearFigures, &MatrixFigures))| {
        // columns touch when there are many
        let width = if n > 60 { 1.0 } else { 0.9 } / n.max(1) as f64;
        let total = figures.trits.iter().sum::<u64>().max(1) as f64;
        let mut top = EDGE;
        let classes = ["plus", "zero", "minus"].into_iter();
        let parts = classes.zip(figures.trits.iter().rev());
        let parts = parts.map(|(class, count)| {
            let share = *count as f64 / total;
            let y = top;
            top += share * height;
            (class, share, y)
        });
        html! {
            @for (class, share, y) in parts {
                rect class=(class) x=(percent(at(i, n, 0.0))) y=(format!("{y:.2}"))
                    width=(percent(width)) height=(format!("{:.2}", share * height)) {
                    title {
                        (printable(&linear.name)) (side) ": " (bitnet_cli::percent(share, 2)) " of " (class)
                    }
                }
            }
            @if differing.contains(linear.name.as_str()) { (mark(i, n, LOW, &linear.name)) }
        }
    };
    let columns = linears.iter().zip(figures).enumerate();
    let content = html! { @for pair in columns { (column(pair)) } };
    let lines = [(0.0, "100 %"), (0.5, "50 %"), (1.0, "0 %")];
    let lines = lines.map(|(share, label)| (EDGE + share * height, label.to_owned()));
    let picture = Picture {
        label: "shares of -1, 0 and +1 in each linear",
        height: LOW,
        lines: lines.into(),
        content,
        columns: n,
        ends: ends(linears),
    };
    picture.draw()
}

/// Scales of each linear, from the smallest to the largest; the source's to the left of the artifact's.
pub(super) fn scales(linears: &[LinearFigures], differing: &BTreeSet<&str>) -> Markup {
    let both = |l: &LinearFigures| l.source.into_iter().chain([l.artifact]);
    let magnitudes = linears
        .iter()
        .flat_map(both)
        .flat_map(|figures| figures.scales)
        .map(|s| f64::from(s.abs()));
    let decades = Decades::around(magnitudes);
    let n = linears.len();
    let one = |x: f64, figures: &MatrixFigures, side: [&str; 2], name: &str| {
        let x = percent(x);
        let [low, median, high] = figures.scales.map(|s| pixel(decades.y(f64::from(s.abs()))));
        let [least, middle, most] = figures.scales;
        html! {
            (line(&format!("range {}", side[0]), [x.clone(), low, x.clone(), high]))
            circle class=(format!("median {}", side[0]).trim_end()) cx=(x) cy=(median) r="2.5" {
                title {
                    (printable(name)) (side[1]) (format!(": {least:e} to {most:e}, median {middle:e}"))
                }
            }
        }
    };
    let content = html! {
        @for (i, linear) in linears.iter().enumerate() {
            @if differing.contains(linear.name.as_str()) { (mark(i, n, HIGH, &linear.name)) }
            @if let Some(source) = &linear.source {
                (one(at(i, n, 0.35), source, ["source", " (source)"], &linear.name))
                (one(at(i, n, 0.65), &linear.artifact, ["", ""], &linear.name))
            } @else {
                (one(at(i, n, 0.5), &linear.artifact, ["", ""], &linear.name))
            }
        }
    };
    let picture = Picture {
        label: "scales of each linear",
        height: HIGH,
        lines: decades.lines(),
        content,
        columns: n.saturating_mul(2),
        ends: ends(linears),
    };
    picture.draw()
}

/// The names of the first and the last linear.
fn ends(linears: &[LinearFigures]) -> [&str; 2] {
    match linears {
        [first, .., last] => [&first.name, &last.name],
        [one] => [&one.name, ""],
        [] => ["", ""],
    }
}
