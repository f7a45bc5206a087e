//! The screen of `top`: lines of text on a buffer, for any size of the terminal.

use ratatui_core::buffer::Buffer;
use ratatui_core::layout::Rect;
use ratatui_core::style::{Color, Modifier, Style};
use ratatui_core::text::{Line, Span};

use super::model::{Meter, Row, Top};
use crate::client::table::bytes;
use crate::flows::FlowReport;

/// Widest name that is shown whole on a wide terminal, columns.
const NAME_MAX: usize = 32;

/// A column of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Name,
    Usage,
    Hard,
    Bar,
    Pressure,
    Flows,
    Sent,
    Received,
    Refused,
    Cpu,
}

/// Columns from left to right: head, least width, and rank: the columns of the lowest ranks that fit are shown.
const COLUMNS: [(Column, &str, usize, usize); 10] = [
    (Column::Name, "NAME", 12, 0),
    (Column::Usage, "USAGE", 6, 1),
    (Column::Hard, "HARD", 6, 4),
    (Column::Bar, "OF HARD", 9, 3),
    (Column::Pressure, "PRES", 4, 2),
    (Column::Flows, "FLOWS", 5, 5),
    (Column::Sent, "SENT/s", 6, 6),
    (Column::Received, "RECV/s", 6, 7),
    (Column::Refused, "REFUSED", 7, 8),
    (Column::Cpu, "CPU%", 5, 9),
];

/// Draws everything.
pub(super) fn draw(buffer: &mut Buffer, top: &Top) {
    let Rect { width, height, .. } = buffer.area;
    if width == 0 || height == 0 {
        return;
    }
    line(buffer, 0, title(top), false);
    if height > 2 {
        line(buffer, height - 1, help(top), false);
    }
    // Between title and help. The details take the lower half.
    let room = height.saturating_sub(2);
    let rows = if top.details().is_some() { room.div_ceil(2) } else { room };
    table(buffer, 1, rows, top);
    if let Some(name) = top.details() {
        details(buffer, 1 + rows, room - rows, name, top);
    }
}

/// What concerns all containers, and whether it is current.
fn title(top: &Top) -> Line<'static> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let (host, shown) = (&top.host, top.shown().len());
    let of =
        if shown == top.containers() { String::new() } else { format!(" of {}", top.containers()) };
    let limit = host.hard.map(|hard| format!(" of {}", bytes(hard))).unwrap_or_default();
    let mut spans = vec![
        Span::styled("skbudget top", bold),
        Span::raw(format!("  {shown}{of} containers  usage {}{limit}", bytes(host.usage))),
    ];
    if host.pressure != "none" {
        spans.push(Span::styled(format!("  pressure {}", host.pressure), color(host)));
    }
    if let Some(why) = &top.lost {
        let warning = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
        spans.push(Span::styled(format!("  NOT CURRENT, trying again: {why}"), warning));
    }
    Line::from(spans)
}

/// The keys, or the filter that is typed.
fn help(top: &Top) -> Line<'static> {
    if top.editing {
        return Line::from(format!("filter by name: {}_  (Enter: done, Esc: all)", top.filter));
    }
    let filter = if top.filter.is_empty() { "" } else { "*" };
    Line::from(format!(
        "q quit  s sort: {}  r reverse  / filter{filter}  Up Down select  Enter flows",
        top.sort_name()
    ))
}

/// Writes a line, reversed over the whole width if it is selected.
fn line(buffer: &mut Buffer, y: u16, text: Line<'_>, selected: bool) {
    let width = buffer.area.width;
    buffer.set_line(0, y, &text, width);
    if selected {
        let reversed = Style::new().add_modifier(Modifier::REVERSED);
        buffer.set_style(Rect::new(0, y, width, 1), reversed);
    }
}

/// The table of containers, with the selected one in sight.
fn table(buffer: &mut Buffer, y: u16, height: u16, top: &Top) {
    if height == 0 {
        return;
    }
    let shown = top.shown();
    let name = shown.iter().map(|row| row.name.len()).max().unwrap_or(0).min(NAME_MAX);
    let columns = columns(buffer.area.width.into(), name);
    let heads = columns.iter().map(|&(column, head, width)| match column {
        Column::Name | Column::Bar | Column::Pressure => format!("{head:<width$} "),
        _ => format!("{head:>width$} "),
    });
    let bold = Style::new().add_modifier(Modifier::BOLD);
    line(buffer, y, Line::styled(heads.collect::<String>(), bold), false);
    let lines = usize::from(height) - 1;
    // Scrolled as far as the selected line needs.
    let selected = top.selected();
    let first = (selected + 1).saturating_sub(lines);
    for (index, row) in shown.iter().enumerate().skip(first).take(lines) {
        let cells = columns
            .iter()
            .flat_map(|(column, _, width)| [cell(*column, *width, row), Span::raw(" ")]);
        let at = y + 1 + (index - first) as u16;
        line(buffer, at, Line::from(cells.collect::<Vec<_>>()), index == selected);
    }
    if shown.is_empty() && lines > 0 {
        let none =
            if top.containers() == 0 { "no containers" } else { "no name contains the filter" };
        line(buffer, y + 1, Line::from(none), false);
    }
}

/// The columns that fit, with their widths: the name and the bar share the remaining room.
fn columns(room: usize, name: usize) -> Vec<(Column, &'static str, usize)> {
    let mut left = room;
    let mut ranked = COLUMNS;
    ranked.sort_by_key(|(.., rank)| *rank);
    // A column is shown only if all before it in rank are.
    let fitting = ranked.iter().take_while(|(_, _, width, rank)| {
        let need = if *rank == 0 { *width } else { width + 1 };
        let fits = need <= left;
        left -= if fits { need } else { 0 };
        fits
    });
    let last = fitting.count();
    let longer = name.saturating_sub(COLUMNS[0].2).min(left);
    let shown = COLUMNS.iter().filter(|(.., rank)| *rank < last);
    shown
        .map(|(column, head, width, _)| match column {
            Column::Name => (*column, *head, width + longer),
            Column::Bar => (*column, *head, width + left - longer),
            _ => (*column, *head, *width),
        })
        .collect()
}

/// The text of one column.
fn cell(column: Column, width: usize, row: &Row) -> Span<'static> {
    let meter = &row.meter;
    let text = match column {
        Column::Name => return Span::raw(format!("{:<width$.width$}", row.name)),
        Column::Bar => return Span::styled(bar(meter, width), color(meter)),
        Column::Pressure => {
            return Span::styled(format!("{:<width$.width$}", meter.pressure), color(meter));
        }
        Column::Usage => bytes(meter.usage),
        Column::Hard => meter.hard.map_or_else(|| "-".to_owned(), bytes),
        Column::Flows => row.flows.to_string(),
        Column::Sent => bytes(row.sent_rate),
        Column::Received => bytes(row.received_rate),
        Column::Refused => row.refused.to_string(),
        Column::Cpu => format!("{}.{}", row.cpu_permille / 10, row.cpu_permille % 10),
    };
    Span::raw(format!("{text:>width$}"))
}

/// Usage as a part of hard, with marks at low and soft. Blank without a limit.
fn bar(meter: &Meter, width: usize) -> String {
    let (Some(hard), true) = (meter.hard.filter(|hard| *hard > 0), width > 2) else {
        return " ".repeat(width);
    };
    let inside = width - 2;
    let place = |part: u64| (u128::from(part) * inside as u128 / u128::from(hard)) as usize;
    let filled = place(meter.usage).min(inside);
    let mark =
        |at: usize| [meter.low, meter.soft].iter().flatten().any(|limit| place(*limit) == at);
    let inner = (0..inside).map(|at| match (at < filled, mark(at)) {
        (_, true) => '|',
        (true, false) => '#',
        (false, false) => '.',
    });
    format!("[{}]", inner.collect::<String>())
}

/// Red at hard, yellow under pressure, otherwise green.
fn color(meter: &Meter) -> Style {
    Style::new().fg(match meter.pressure.as_str() {
        "hard" => Color::Red,
        "soft" => Color::Yellow,
        _ => Color::Green,
    })
}

/// The selected container: its limits and its flows.
fn details(buffer: &mut Buffer, y: u16, height: u16, name: &str, top: &Top) {
    let meter = top.shown().get(top.selected()).map(|row| row.meter.clone()).unwrap_or_default();
    let size = |limit: Option<u64>| limit.map_or_else(|| "-".to_owned(), bytes);
    let text = format!(
        "{name}: usage {} (most {})  low {}  soft {}  hard {}",
        bytes(meter.usage),
        bytes(meter.max_usage),
        size(meter.low),
        size(meter.soft),
        size(meter.hard),
    );
    let bold = Style::new().add_modifier(Modifier::BOLD);
    // Those that hold most come first: they are of interest when memory is short.
    let mut flows: Vec<&FlowReport> = top.flows.iter().collect();
    flows.sort_by_key(|flow| std::cmp::Reverse(flow.charged_bytes));
    let cells = flows.into_iter().map(flow_cells);
    let rows: Vec<_> = std::iter::once(FLOW_HEAD.map(str::to_owned)).chain(cells).collect();
    // As wide as their content: all columns of IPv4 flows then fit 80 columns.
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 8] = std::array::from_fn(width);
    let mut lines = vec![Line::styled(text, bold)];
    for (index, row) in rows.iter().enumerate() {
        let style = if index == 0 { bold } else { Style::new() };
        lines.push(Line::styled(flow_line(row, &widths), style));
    }
    for (text, at) in lines.into_iter().zip(0..height) {
        line(buffer, y + at, text, false);
    }
}

/// Columns of a flow. The first three are texts.
const FLOW_HEAD: [&str; 8] =
    ["STATE", "CONTAINER", "PEER", "HELD", "RECV-Q", "SEND-Q", "RTT/ms", "RETR"];

/// The columns of one flow as texts.
fn flow_cells(flow: &FlowReport) -> [String; 8] {
    let none = || "-".to_owned();
    let ms = |us: u64| format!("{}.{:03}", us / 1000, us % 1000);
    let tcp = flow.tcp.as_ref();
    [
        flow.state.clone(),
        flow.guest.to_string(),
        flow.peer.map_or_else(none, |peer| peer.to_string()),
        bytes(flow.charged_bytes),
        bytes(flow.recv_queue_bytes),
        bytes(flow.send_queue_bytes),
        tcp.map_or_else(none, |tcp| ms(tcp.rtt_us)),
        tcp.map_or_else(none, |tcp| tcp.retransmits.to_string()),
    ]
}

/// The columns of one flow, texts to the left and numbers to the right.
fn flow_line(cells: &[String; 8], widths: &[usize; 8]) -> String {
    let aligned = cells.iter().zip(widths).enumerate().map(|(column, (cell, &width))| {
        if column < 3 { format!("{cell:<width$} ") } else { format!("{cell:>width$} ") }
    });
    aligned.collect()
}
