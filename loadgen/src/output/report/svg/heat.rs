//! A heat map: rows of levels over time. All cells of one level are one path, and neighbours in a row are one piece of
//! it, so that a thousand containers need only some tens of kilobytes.

use std::fmt::Write as _;

use super::{BOTTOM, Band, H, LEFT, LETTER, LINE, RIGHT, TOP, W, escape, open, text};

/// Lower bounds of the levels, as a share of the row's solo goodput, and their names.
pub(crate) const LEVELS: &[(f64, &str)] = &[
    (0.0, "nothing"),
    (0.001, "< 10 %"),
    (0.1, "10-25 %"),
    (0.25, "25-50 %"),
    (0.5, "50-75 %"),
    (0.75, "75-90 %"),
    (0.9, "≥ 90 %"),
];

#[derive(Debug, Clone, Default)]
pub(crate) struct HeatRow {
    pub name: String,
    /// By column; `None` where nothing was measured, or without a reference.
    pub parts: Vec<Option<f64>>,
    /// Texts of the tooltips.
    pub texts: Vec<HeatPart>,
}

/// The text of a range of a row.
#[derive(Debug, Clone, Default)]
pub(crate) struct HeatPart {
    pub from: f64,
    pub to: f64,
    pub text: String,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Heat {
    pub title: String,
    pub rows: Vec<HeatRow>,
    /// Labels of rows on the axis, by row index.
    pub row_names: Vec<(usize, String)>,
    /// The x axis, the same as that of the chart beside it.
    pub x: (f64, f64),
    pub x_ticks: Vec<(f64, String)>,
    pub bands: Vec<Band>,
}

/// The level of a share.
fn level(part: f64) -> usize {
    LEVELS.iter().rposition(|(from, _)| part >= *from).unwrap_or(0)
}

impl Heat {
    pub(crate) fn render(&self) -> String {
        let (width, height) = (W - LEFT - RIGHT, H - TOP - BOTTOM);
        let mut s = open(&self.title, H);
        let _ = write!(
            s,
            "<rect class=\"hnone\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{width}\" height=\"{height}\"/>"
        );
        let row_height = height / self.rows.len().max(1) as f64;
        for (l, _) in LEVELS.iter().enumerate() {
            let mut path = String::new();
            for (i, row) in self.rows.iter().enumerate() {
                let top = TOP + i as f64 * row_height;
                runs(&mut path, &row.parts, l, top, row_height);
            }
            if !path.is_empty() {
                let _ = write!(s, "<path class=\"h{l}\" d=\"{path}\"/>");
            }
        }
        // Invisible rectangles above the cells carry the tooltips.
        for (i, row) in self.rows.iter().enumerate() {
            let (top, name) = (TOP + i as f64 * row_height, escape(&row.name));
            let mut over = |x: f64, width: f64, text: &str| {
                let _ = write!(
                    s,
                    "<rect class=\"over\" x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{row_height:.1}\">\
                     <title>{name}{text}</title></rect>",
                );
            };
            over(LEFT, width, "");
            for p in &row.texts {
                let (from, to) = (self.at(p.from), self.at(p.to));
                over(from, to - from, &format!("\n{}", escape(&p.text)));
            }
        }
        self.axes(&mut s, row_height);
        s.push_str("</svg>");
        s
    }

    fn at(&self, x: f64) -> f64 {
        let part = (x - self.x.0) / (self.x.1 - self.x.0).max(1e-12);
        LEFT + part.clamp(0.0, 1.0) * (W - LEFT - RIGHT)
    }

    fn axes(&self, s: &mut String, row_height: f64) {
        let at = |x: f64| self.at(x);
        for b in &self.bands {
            let (from, to) = (at(b.from), at(b.to));
            let _ = write!(s, "<path class=\"edge\" d=\"M{from:.1} {TOP}V{:.1}\"/>", H - BOTTOM);
            if b.name.chars().count() as f64 * LETTER <= to - from + LETTER {
                text(s, "bandname", (f64::midpoint(from, to), TOP - 9.0), "middle", &b.name);
            }
        }
        for (x, name) in &self.x_ticks {
            let half = name.chars().count() as f64 * LETTER / 2.0;
            let (x, anchor) = if at(*x) + half > W { (W - 2.0, "end") } else { (at(*x), "middle") };
            text(s, "", (x, H - BOTTOM + 19.0), anchor, name);
        }
        let mut free = f64::MIN;
        for (row, name) in &self.row_names {
            let middle = TOP + (*row as f64 + 0.5) * row_height + 4.5;
            let y = middle.clamp(TOP + 12.0, H - BOTTOM - 3.0);
            // Lines of text are higher on a phone: leave out a label that would overlap.
            if y >= free {
                text(s, "", (LEFT - 7.0, y), "end", name);
                free = y + LINE;
            }
        }
    }
}

/// Adds the cells of one level in one row; neighbouring cells become one piece.
fn runs(path: &mut String, parts: &[Option<f64>], wanted: usize, top: f64, height: f64) {
    let width = (W - LEFT - RIGHT) / parts.len().max(1) as f64;
    let mut from = 0;
    while from < parts.len() {
        let same = |p: &&Option<f64>| p.map(level) == Some(wanted);
        let count = parts[from..].iter().take_while(same).count();
        if count > 0 {
            let (x, wide) = (LEFT + from as f64 * width, count as f64 * width);
            let _ = write!(path, "M{x:.1} {top:.1}h{wide:.1}v{height:.1}h-{wide:.1}z");
        }
        // At least one: skip a cell of another level.
        from += count.max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fall_into_their_levels() {
        let of = |p| LEVELS[level(p)].1;
        assert_eq!(of(0.0), "nothing");
        assert_eq!(of(0.05), "< 10 %");
        assert_eq!(of(0.5), "50-75 %");
        assert_eq!(of(7.0), "≥ 90 %");
    }

    #[test]
    fn neighbours_are_one_piece_and_unknown_is_none() {
        let row = HeatRow {
            name: "v".to_owned(),
            parts: vec![Some(1.0), Some(1.0), None, Some(0.0)],
            texts: Vec::new(),
        };
        let svg = Heat { rows: vec![row], x: (0.0, 1.0), ..Heat::default() }.render();
        let pieces = |class: &str| {
            let path = svg.split(&format!("class=\"{class}\" d=\"")).nth(1).unwrap_or("");
            path.split('"').next().unwrap_or("").matches('M').count()
        };
        // Two full cells in one piece, one empty cell, and none for the unknown one.
        assert_eq!((pieces("h6"), pieces("h0"), pieces("h3")), (1, 1, 0));
    }
}
