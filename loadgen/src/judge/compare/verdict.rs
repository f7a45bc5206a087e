//! Judges the lines of a comparison.

use super::{ALPHA, Judgement, Line};
use crate::exit::Exit;
use crate::judge::metrics::{Better, find};

/// One regression decides; then one unclear line.
pub(super) fn exit(lines: &[Line], both: bool) -> Exit {
    let any = |j: Judgement| lines.iter().any(|l| l.judgement == j);
    if any(Judgement::Worse) || both && any(Judgement::Better) {
        Exit::Regression
    } else if any(Judgement::Unclear) || lines.is_empty() {
        Exit::Inconclusive
    } else {
        Exit::Passed
    }
}

/// Judges a line by the three conditions at the head of `compare`.
pub(super) fn judge(line: &mut Line, margin: f64) {
    // A line with a reason was refused before any test ran: it stays unclear.
    if !line.reason.is_empty() {
        return;
    }
    let more_is_worse = find(line.metric).is_some_and(|m| m.better == Better::Smaller);
    let turn = |log: f64| if more_is_worse { log } else { -log };
    let (x, y) = (turn(line.ratio_low.ln()), turn(line.ratio_high.ln()));
    // Turning the sign may swap the ends of the interval.
    let (low, high, middle) = (x.min(y), x.max(y), turn(line.ratio.ln()));
    let limit = (1.0 + margin).ln();
    let certain = line.p_holm <= ALPHA && middle.abs() > line.floor_ratio.map_or(0.0, f64::ln);
    line.judgement = if low > limit && certain {
        Judgement::Worse
    } else if high < -limit && certain {
        Judgement::Better
    } else if high <= limit {
        // The whole interval lies at or below the margin: whatever the change is, it is not a regression.
        Judgement::Same
    } else {
        let (low, high) = ((low.exp() - 1.0) * 100.0, (high.exp() - 1.0) * 100.0);
        line.reason = format!(
            "between {low:+.1} % and {high:+.1} % worse: the interval is too wide to decide"
        );
        Judgement::Unclear
    };
}

/// Withdraws a judgement that a lower bound does not support. The value behind the bound may be any larger one.
pub(super) fn bounds(line: &mut Line) {
    let more_is_worse = find(line.metric).is_some_and(|m| m.better == Better::Smaller);
    // A larger value of B is worse, and of A better, if smaller is better.
    let (may_be_worse, may_be_better) = match more_is_worse {
        true => (line.b_at_least, line.a_at_least),
        false => (line.a_at_least, line.b_at_least),
    };
    let holds = match line.judgement {
        Judgement::Unclear => return,
        Judgement::Worse => !may_be_better,
        // A smaller change than the margin, or none, even if A is larger than known.
        Judgement::Better | Judgement::Same => !may_be_worse,
    };
    if !holds {
        let sides = match (line.a_at_least, line.b_at_least) {
            (true, true) => "A and B",
            (true, false) => "A",
            _ => "B",
        };
        line.judgement = Judgement::Unclear;
        line.reason = format!("of {sides} only a lower bound is known");
    }
}
