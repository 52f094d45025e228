//! Charts as SVG from the server: no script draws them.
//!
//! The picture stretches with the page; words and numbers stand beside it as text, so that they keep their size.

use maud::{Markup, html};

use crate::time::Micros;

const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 120.0;

/// One value over time.
#[derive(Debug)]
pub(super) struct Series<'a> {
    /// What it is.
    pub(super) title: &'a str,
    /// After the numbers.
    pub(super) unit: &'a str,
    /// Digits after the point.
    pub(super) digits: usize,
    /// Left edge.
    pub(super) from: Micros,
    /// Right edge.
    pub(super) to: Micros,
    /// By time.
    pub(super) points: Vec<(Micros, f64)>,
}

impl Series<'_> {
    fn x(&self, time: Micros) -> f64 {
        let span = (self.to.0 - self.from.0).max(1) as f64;
        ((time.0 - self.from.0) as f64 / span * WIDTH).clamp(0.0, WIDTH)
    }

    fn number(&self, value: f64) -> String {
        format!("{value:.*} {}", self.digits, self.unit).trim_end().to_owned()
    }

    fn frame(&self, now: &str, top: f64, shapes: Markup) -> Markup {
        html! {
            figure.chart {
                figcaption { span { (self.title) } " " b { (now) } }
                div.plot {
                    span.top { (self.number(top)) }
                    svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) preserveAspectRatio="none" role="img"
                        aria-label=(format!("{}: now {now}, at most {}", self.title, self.number(top))) {
                        line.grid x1="0" x2=(WIDTH) y1=(HEIGHT / 2.0) y2=(HEIGHT / 2.0) {}
                        line.grid x1="0" x2=(WIDTH) y1=(HEIGHT) y2=(HEIGHT) {}
                        (shapes)
                    }
                    div.span { time { (short(self.from)) } time { (short(self.to)) } }
                }
            }
        }
    }

    /// As a line; broken where nothing came for five times the usual span.
    pub(super) fn line(&self) -> Markup {
        let Some((_, last)) = self.points.last() else { return self.empty() };
        let top = nice(self.points.iter().map(|(_, value)| *value).fold(0.0, f64::max));
        let mut gaps: Vec<i64> = self.points.windows(2).map(|pair| pair[1].0.0 - pair[0].0.0).collect();
        gaps.sort_unstable();
        let usual = gaps.get(gaps.len() / 2).copied().unwrap_or(i64::MAX / 8);
        let (mut path, mut before) = (String::new(), None::<Micros>);
        for (time, value) in &self.points {
            let joined = before.is_some_and(|before| time.0 - before.0 <= usual.saturating_mul(5));
            let y = HEIGHT - value / top * (HEIGHT - 4.0);
            path.push_str(&format!("{}{:.1},{y:.1}", if joined { " L" } else { " M" }, self.x(*time)));
            before = Some(*time);
        }
        self.frame(&self.number(*last), top, html! { path.line d=(path.trim()) {} })
    }

    /// As bars, each `span_us` wide.
    pub(super) fn bars(&self, span_us: i64) -> Markup {
        let Some((time, last)) = self.points.last() else { return self.empty() };
        let top = nice(self.points.iter().map(|(_, value)| *value).fold(0.0, f64::max));
        let width = (self.x(Micros(self.from.0 + span_us)) - 1.0).max(0.5);
        let running = self.to.0 - time.0 < span_us;
        // The span that has not ended yet says nothing of the rate.
        let shown = match self.points.len() {
            n if running && n > 1 => self.points[n - 2].1,
            _ => *last,
        };
        let bars = html! {
            @for (time, value) in &self.points {
                rect.bar x=(format!("{:.1}", self.x(*time))) width=(format!("{width:.1}"))
                    y=(format!("{:.1}", HEIGHT - value / top * (HEIGHT - 4.0))) height=(format!("{:.1}", value / top * (HEIGHT - 4.0))) {}
            }
        };
        self.frame(&self.number(shown), top, bars)
    }

    fn empty(&self) -> Markup {
        html! { figure.chart { figcaption { (self.title) } p.none { "nothing in this span" } } }
    }
}

/// The next of 1, 2, 5 times a power of ten.
fn nice(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|top| *top >= value * 0.999_999).unwrap_or(value)
}

fn short(time: Micros) -> String {
    time.seconds().get(11..16).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_ends_at_a_round_number_that_holds_every_value() {
        for (value, top) in [(0.0, 1.0), (0.03, 0.05), (1.0, 1.0), (1.1, 2.0), (37.0, 50.0), (51.0, 100.0)] {
            assert!((nice(value) - top).abs() < 1e-9, "{value}: {}", nice(value));
        }
    }

    #[test]
    fn a_line_is_broken_where_nothing_came() {
        let at = |second: i64| Micros(second * 1_000_000);
        let points = [0, 1, 2, 3, 20, 21].map(|second| (at(second), 1.0)).into();
        let series = Series { title: "t", unit: "u", digits: 1, from: at(0), to: at(30), points };
        let svg = series.line().into_string();
        let path = svg.split("d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(path.matches('M').count(), 2, "{path}");
        assert!(svg.contains("1.0 u"));
    }

    #[test]
    fn text_in_a_chart_is_escaped() {
        let series = Series {
            title: "<b>",
            unit: "",
            digits: 0,
            from: Micros(0),
            to: Micros(1),
            points: vec![(Micros(0), 1.0)],
        };
        assert!(!series.line().into_string().contains("<b>\""));
        assert!(series.bars(1).into_string().contains("&lt;b&gt;"));
    }
}
