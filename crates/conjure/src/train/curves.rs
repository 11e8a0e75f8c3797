//! `loss.svg`: the curves of a run's log, one panel for each figure.
//!
//! Figures of training are drawn faint as they were logged and strong as a moving average; figures of validations as points.
//! The axis is logarithmic where values are positive and far apart. The file needs nothing beside it, and follows the
//! reader's choice of light or dark.

use super::metrics;
use crate::Result;
use crate::image_file::write_atomically;
use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::path::Path;

/// A panel's frame, and the room around it for ticks and titles, in pixels.
const FRAME: [f64; 2] = [380.0, 170.0];
const LEFT: f64 = 58.0;
const TOP: f64 = 34.0;
const PANEL: [f64; 2] = [LEFT + FRAME[0] + 22.0, TOP + FRAME[1] + 34.0];
/// Points of a curve that are drawn; more would not be seen.
const POINTS: usize = 400;
/// The moving average reaches over this share of the curve.
const SMOOTHED: f64 = 1.0 / 40.0;
/// Values further apart than this get a logarithmic axis.
const FAR: f64 = 20.0;

const STYLE: &str = "\
    svg { background: #ffffff; font: 11px system-ui, sans-serif; }\n\
    text { fill: #374151; }\n\
    .title { font-size: 13px; font-weight: 600; }\n\
    .grid { stroke: #e5e7eb; stroke-width: 1; }\n\
    .raw { fill: none; stroke: #2563eb; stroke-opacity: 0.25; stroke-width: 1; }\n\
    .smooth { fill: none; stroke: #2563eb; stroke-width: 1.8; stroke-linejoin: round; }\n\
    .held { fill: none; stroke: #d97706; stroke-width: 1.2; stroke-dasharray: 4 3; }\n\
    .point { fill: #d97706; }\n\
    .page { fill: #ffffff; }\n\
    @media (prefers-color-scheme: dark) {\n\
    svg { background: #0d1117; }\n\
    text { fill: #c9d1d9; }\n\
    .grid { stroke: #262d36; }\n\
    .raw, .smooth { stroke: #6ea8fe; }\n\
    .held { stroke: #f0b35a; }\n\
    .point { fill: #f0b35a; }\n\
    .page { fill: #0d1117; }\n\
    }\n";

/// Draws the log at `metrics` to the file `to`.
///
/// # Errors
/// The log cannot be read, or the drawing not be written.
pub(super) fn draw(metrics: &Path, to: &Path) -> Result<()> {
    let svg = svg(&panels(&metrics::read(metrics)?));
    write_atomically(to, |file| file.write_all(svg.as_bytes()))
}

/// A figure over the run: `(updates, value)`.
#[derive(Default)]
struct Panel {
    name: String,
    trained: Vec<(f64, f64)>,
    held_out: Vec<(f64, f64)>,
}

/// One panel for each figure: those of training, those of validations alone, the learning rate, the gradient.
fn panels(lines: &[Map<String, Value>]) -> Vec<Panel> {
    fn panel<'a>(panels: &'a mut Vec<Panel>, name: &str) -> &'a mut Panel {
        let place = panels.iter().position(|panel| panel.name == name).unwrap_or_else(|| {
            panels.push(Panel { name: name.to_owned(), ..Panel::default() });
            panels.len() - 1
        });
        &mut panels[place]
    }
    let mut panels = Vec::new();
    let step = |line: &Map<String, Value>| line.get("step").and_then(Value::as_f64).unwrap_or(0.0);
    for (kind, held_out) in [("figures", false), ("validation", true)] {
        for line in lines {
            for (name, value) in line.get(kind).and_then(Value::as_object).into_iter().flatten() {
                let Some(value) = value.as_f64() else { continue };
                let panel = panel(&mut panels, name);
                if held_out { &mut panel.held_out } else { &mut panel.trained }.push((step(line), value));
            }
        }
    }
    for (entry, name) in [("learning_rate", "learning rate"), ("gradient_norm", "norm of the gradient")] {
        for line in lines {
            if let Some(value) = line.get(entry).and_then(Value::as_f64) {
                panel(&mut panels, name).trained.push((step(line), value));
            }
        }
    }
    panels
}

fn svg(panels: &[Panel]) -> String {
    let columns = panels.len().clamp(1, 2);
    let [width, height] = [PANEL[0] * columns as f64, PANEL[1] * panels.len().div_ceil(columns).max(1) as f64];
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} \
         {height}\">\n<title>Curves of a training run</title>\n<style>\n{STYLE}</style>\n\
         <rect class=\"page\" width=\"{width}\" height=\"{height}\"/>\n\
         <clipPath id=\"frame\"><rect width=\"{}\" height=\"{}\"/></clipPath>\n",
        FRAME[0], FRAME[1]
    );
    let last = panels.iter().flat_map(|panel| panel.trained.iter().chain(&panel.held_out)).map(|(x, _)| *x);
    let last = last.fold(1.0, f64::max);
    for (i, panel) in panels.iter().enumerate() {
        let x = LEFT + PANEL[0] * (i % columns) as f64;
        let y = TOP + PANEL[1] * (i / columns) as f64;
        // Writing to a string cannot fail.
        let _ = writeln!(out, "<g transform=\"translate({x} {y})\">");
        panel.draw(&mut out, last);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

impl Panel {
    fn draw(&self, out: &mut String, last: f64) {
        let smooth = thinned(&smoothed(&self.trained), |part| part[part.len() - 1]);
        let raw = thinned(&self.trained, |part| {
            let n = part.len() as f64;
            (part.iter().map(|p| p.0).sum::<f64>() / n, part.iter().map(|p| p.1).sum::<f64>() / n)
        });
        let axis = Axis::over(raw.iter().chain(&smooth).chain(&self.held_out).map(|(_, y)| *y));
        let [w, h] = FRAME;
        let place = |(x, y): (f64, f64)| (x / last * w, h - axis.position(y) * h);
        let path = |points: &[(f64, f64)]| {
            let mut path = String::new();
            for (i, point) in points.iter().enumerate() {
                let (x, y) = place(*point);
                let _ = write!(path, "{}{x:.1} {y:.1}", if i == 0 { "M" } else { "L" });
            }
            path
        };
        for tick in axis.ticks() {
            let y = h - axis.position(tick) * h;
            let _ = writeln!(
                out,
                "<path class=\"grid\" d=\"M0 {y:.1}H{w}\"/><text x=\"-7\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                y + 4.0,
                short(tick)
            );
        }
        for tick in even_ticks(0.0, last, 5) {
            let x = tick / last * w;
            let _ = writeln!(
                out,
                "<path class=\"grid\" d=\"M{x:.1} 0V{h}\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                h + 16.0,
                short(tick)
            );
        }
        out.push_str("<g clip-path=\"url(#frame)\">\n");
        for (class, points) in [("raw", &raw), ("smooth", &smooth), ("held", &self.held_out)] {
            if points.len() > 1 {
                let _ = writeln!(out, "<path class=\"{class}\" d=\"{}\"/>", path(points));
            }
        }
        out.push_str("</g>\n");
        let alone = if self.trained.len() == 1 { &self.trained[..] } else { &[] };
        for point in self.held_out.iter().chain(alone) {
            let (x, y) = place(*point);
            let _ = writeln!(out, "<circle class=\"point\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.6\"/>");
        }
        let latest = |points: &[(f64, f64)], what: &str| points.last().map(|(_, y)| format!("{what}{}", short(*y)));
        let latest: Vec<String> =
            [latest(&smooth, ""), latest(&self.held_out, "held-out ")].into_iter().flatten().collect();
        let _ = writeln!(
            out,
            "<text class=\"title\" x=\"0\" y=\"-12\">{}</text><text x=\"{w}\" y=\"-12\" text-anchor=\"end\">{}</text>",
            escaped(&self.name),
            latest.join(" \u{b7} ")
        );
    }
}

/// The vertical axis: from the bottom of the frame to its top.
struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (Some(&low), Some(&high)) = (values.first(), values.last()) else {
            return Self { low: 0.0, high: 1.0, logarithmic: false };
        };
        if low > 0.0 && high / low > FAR {
            return Self { low: low / 1.15, high: high * 1.15, logarithmic: true };
        }
        // A single value, or values so close that their distance cannot be drawn, stand in the middle.
        let room = ((high - low) * 0.06).max(high.abs().max(low.abs()) * 1e-3).max(1e-9);
        Self { low: low - room, high: high + room, logarithmic: false }
    }

    /// 0 at the bottom, 1 at the top.
    fn position(&self, value: f64) -> f64 {
        let place = |x: f64| if self.logarithmic { x.ln() } else { x };
        (place(value) - place(self.low)) / (place(self.high) - place(self.low))
    }

    fn ticks(&self) -> Vec<f64> {
        if !self.logarithmic {
            return even_ticks(self.low, self.high, 4);
        }
        let [from, to] = [self.low, self.high].map(|x| x.log10().floor() as i32);
        let at = |digits: &[f64]| {
            let all = (from..=to).flat_map(|power| digits.iter().map(move |digit| digit * 10f64.powi(power)));
            all.filter(|tick| (self.low..=self.high).contains(tick)).collect::<Vec<f64>>()
        };
        let powers = at(&[1.0]);
        match powers.len() {
            0..=1 => at(&[1.0, 2.0, 5.0]),
            2..=3 => at(&[1.0, 3.0]),
            n => powers.into_iter().step_by(n.div_ceil(6)).collect(),
        }
    }
}

/// About `count` round numbers from `low` to `high`.
fn even_ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let rough = (high - low) / count as f64;
    if !(rough.is_finite() && rough > 0.0) {
        return vec![low];
    }
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|step| *step >= rough).unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|tick| *tick <= high * (1.0 + 1e-12)).take(20).collect()
}

/// The exponential moving average, freed of its start's weight.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (points.len() as f64 * SMOOTHED).max(1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    points
        .iter()
        .map(|(x, y)| {
            (sum, weight) = (keep * sum + y, keep * weight + 1.0);
            (*x, sum / weight)
        })
        .collect()
}

/// At most [`POINTS`] points, each made of as many neighbours.
fn thinned(points: &[(f64, f64)], merge: impl Fn(&[(f64, f64)]) -> (f64, f64)) -> Vec<(f64, f64)> {
    points.chunks(points.len().div_ceil(POINTS).max(1)).map(merge).collect()
}

/// Four digits at most.
fn short(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        return "0".to_owned();
    }
    if !(1e-3..1e6).contains(&size) {
        return format!("{value:.2e}").replace(".00e", "e").replacen("0e", "e", 1);
    }
    if size >= 1e4 {
        let text = format!("{:.1}", value / 1e3);
        return format!("{}k", text.trim_end_matches(".0"));
    }
    let decimals = (3 - size.log10().floor() as i32).clamp(0, 6) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lines(values: &[Value]) -> Vec<Map<String, Value>> {
        values.iter().map(|value| value.as_object().unwrap().clone()).collect()
    }

    #[test]
    fn every_figure_gets_a_panel_and_bad_values_none() {
        let log = lines(&[
            json!({"step": 10, "figures": {"unet": 0.9, "kl <1>": 3.0}, "learning_rate": 1e-4, "gradient_norm": 2.0}),
            json!({"step": 20, "figures": {"unet": 0.7, "kl <1>": null}, "learning_rate": 1e-4, "gradient_norm": 1.0}),
            json!({"step": 20, "validation": {"psnr": 21.5, "unet": 0.8}}),
        ]);
        let panels = panels(&log);
        let names: Vec<&str> = panels.iter().map(|panel| panel.name.as_str()).collect();
        assert_eq!(names, ["unet", "kl <1>", "psnr", "learning rate", "norm of the gradient"]);
        assert_eq!(panels[1].trained, [(10.0, 3.0)]);
        assert_eq!(panels[0].trained, [(10.0, 0.9), (20.0, 0.7)]);
        assert_eq!(panels[0].held_out, [(20.0, 0.8)]);
        let svg = svg(&panels);
        assert!(svg.contains("kl &lt;1&gt;") && svg.contains("held-out 21.5"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(svg.starts_with("<svg xmlns=") && svg.trim_end().ends_with("</svg>"));
        assert_eq!(svg.matches("<g").count(), svg.matches("</g>").count());
    }

    #[test]
    fn an_empty_log_and_a_flat_one_are_drawn() {
        assert!(svg(&panels(&[])).ends_with("</svg>\n"));
        let flat = lines(&[json!({"step": 1, "figures": {"x": 0.0}}), json!({"step": 2, "figures": {"x": 0.0}})]);
        let svg = svg(&panels(&flat));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn axes_have_round_ticks_and_turn_logarithmic_for_wide_ranges() {
        let axis = Axis::over([0.01, 0.5, 3.0].into_iter());
        assert!(axis.logarithmic);
        assert_eq!(
            axis.ticks().iter().map(|tick| short(*tick)).collect::<Vec<_>>(),
            ["0.01", "0.03", "0.1", "0.3", "1", "3"]
        );
        assert!((axis.position(axis.low)).abs() < 1e-12 && (axis.position(axis.high) - 1.0).abs() < 1e-12);
        let axis = Axis::over([-0.4, 1.0].into_iter());
        assert!(!axis.logarithmic);
        assert_eq!(even_ticks(0.0, 1000.0, 5), [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]);
        assert_eq!(even_ticks(-0.4, 1.0, 4), [0.0, 0.5, 1.0]);
    }

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, 0.012_34, 0.000_1, 12.0, 1234.5, 25_000.0, 2.5e7, -0.5, 2e-4, 1e-3].map(short);
        assert_eq!(texts, ["0", "0.01234", "1e-4", "12", "1234", "25k", "2.5e7", "-0.5", "2e-4", "0.001"]);
    }

    #[test]
    fn the_average_follows_its_curve_and_many_points_are_merged() {
        let points: Vec<(f64, f64)> = (0..4000).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        let smooth = smoothed(&points);
        assert_eq!(smooth[0].1, 0.0);
        assert!((smooth[3999].1 - 0.5).abs() < 0.01);
        let thin = thinned(&points, |part| part[0]);
        assert_eq!((thin.len(), thin[1].0), (400, 10.0));
    }
}
