//! The output: medians, ratios with their spread, and each reading as a line of JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::cells::{Against, Cell, Figure, Figures, Goal};
use crate::servers::Kind;

/// The readings of a cell: for each server, one of each round.
pub(crate) struct Readings {
    pub(crate) cell: Cell,
    pub(crate) of: Vec<(Kind, Vec<Figures>)>,
}

/// Describes the machine.
pub(crate) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown processor", |model| {
        model.trim_start_matches(['\t', ' ', ':'])
    });
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{model}, {cores} cores; Linux {}", kernel.trim())
}

/// A reading as a line.
pub(crate) fn line(
    cell: &Cell,
    kind: Kind,
    version: &str,
    round: usize,
    figures: &Figures,
) -> Value {
    let figures: BTreeMap<&str, f64> = figures
        .iter()
        .map(|(name, value)| (name.0, *value))
        .collect();
    json!({
        "cell": cell.name, "group": cell.group, "x": cell.x, "text": cell.text, "round": round,
        "server": kind.name(), "version": version, "figures": figures,
    })
}

/// The middle one; of two the mean.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let high = *sorted.get(sorted.len() / 2)?;
    let low = *sorted.get((sorted.len() - 1) / 2)?;
    Some(f64::midpoint(low, high))
}

impl Readings {
    /// A server's figure, of each round.
    fn values(&self, kind: Kind, figure: Figure) -> Vec<f64> {
        let rounds = self.of.iter().filter(|(of, _)| *of == kind);
        let figures = rounds.flat_map(|(_, rounds)| rounds.iter().flatten());
        let values = figures.filter(|(name, _)| *name == figure);
        values.map(|(_, value)| *value).collect()
    }

    /// GopherStore's figure divided by another server's in the same round.
    fn ratios(&self, kind: Kind, figure: Figure) -> Vec<f64> {
        let ours = self.values(Kind::GopherStore, figure);
        let theirs = self.values(kind, figure);
        let ratios = ours.into_iter().zip(theirs).map(|(our, their)| our / their);
        ratios.filter(|ratio| ratio.is_finite()).collect()
    }

    /// The subject of a goal, where that can be told.
    fn reached(&self, goal: &Goal, all: &[Readings]) -> Option<f64> {
        let figure = goal.figure;
        let own = || median(&self.values(Kind::GopherStore, figure));
        match goal.against {
            Against::Itself => own(),
            Against::Server(kind) => median(&self.ratios(kind, figure)),
            Against::BetterPeer => {
                let peers = [Kind::Redis, Kind::Valkey].into_iter();
                let ratios = peers.filter_map(|kind| median(&self.ratios(kind, figure)));
                let worse = if goal.at_least { f64::min } else { f64::max };
                ratios.reduce(worse)
            }
            Against::Cell(name) => {
                let other = all.iter().find(|other| other.cell.name == name)?;
                Some(own()? / median(&other.values(Kind::GopherStore, figure))?)
            }
        }
    }

    /// Whether a goal is reached, where that can be told.
    fn judge(&self, goal: &Goal, all: &[Readings]) -> Option<bool> {
        let reached = self.reached(goal, all)?;
        Some(if goal.at_least {
            reached >= goal.bound
        } else {
            reached <= goal.bound
        })
    }
}

/// Three digits that count.
fn number(value: f64) -> String {
    let (value, unit) = match value.abs() {
        size if size >= 999_500.0 => (value / 1e6, " M"),
        size if size >= 9_995.0 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let places = match value.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.995 => 2,
        size if size >= 0.0005 => 3,
        _ => 0,
    };
    format!("{value:.places$}{unit}")
}

fn goals(readings: &Readings, figure: Figure, all: &[Readings]) -> String {
    let goals = readings
        .cell
        .goals
        .iter()
        .filter(|goal| goal.figure == figure);
    let texts = goals.map(|goal| {
        let sign = if goal.at_least { "≥" } else { "≤" };
        let bound = number(goal.bound);
        let text = match goal.against {
            Against::Server(kind) => format!("{sign} {bound} × {}", kind.name()),
            Against::BetterPeer => format!("{sign} {bound} × the better peer"),
            Against::Cell(name) => format!("{sign} {bound} × {name}"),
            Against::Itself => format!("{sign} {bound}"),
        };
        match readings.judge(goal, all) {
            Some(true) => format!("{text}: yes"),
            Some(false) => format!("{text}: **no**"),
            None => text,
        }
    });
    texts.collect::<Vec<_>>().join("<br>")
}

/// The table of all cells, in Markdown.
pub(crate) fn table(cells: &[Readings], versions: &[(Kind, String)]) -> String {
    let is_measured = |kind: Kind| {
        let mut of = cells.iter().flat_map(|readings| &readings.of);
        of.any(|(other, _)| *other == kind)
    };
    let versions: Vec<&(Kind, String)> = versions
        .iter()
        .filter(|(kind, _)| is_measured(*kind))
        .collect();
    let mut text = String::from("| cell | figure |");
    for (_, version) in &versions {
        let _ = write!(text, " {version} |");
    }
    let others: Vec<Kind> = versions.iter().map(|(kind, _)| *kind).collect();
    let others: Vec<Kind> = others
        .into_iter()
        .filter(|kind| *kind != Kind::GopherStore)
        .collect();
    for kind in &others {
        let _ = write!(text, " ÷ {} |", kind.name());
    }
    text += " goal |\n|---|---|";
    text += &"--:|".repeat(versions.len() + others.len());
    text += "---|\n";
    for readings in cells {
        let first = readings.of.iter().find_map(|(_, rounds)| rounds.first());
        let figures = first.map_or(&[][..], |figures| figures.as_slice());
        for (row, (figure, _)) in figures.iter().enumerate() {
            let cell = &readings.cell;
            let head = match row {
                0 => format!("`{}`: {}", cell.name, cell.text),
                _ => String::new(),
            };
            let _ = write!(text, "| {head} | {} |", figure.0);
            for (kind, _) in &versions {
                let value = median(&readings.values(*kind, *figure));
                let _ = write!(text, " {} |", value.map_or_else(|| "–".to_owned(), number));
            }
            for kind in &others {
                let ratios = readings.ratios(*kind, *figure);
                let low = ratios.iter().copied().fold(f64::INFINITY, f64::min);
                let high = ratios.iter().copied().fold(0.0, f64::max);
                let ratio = median(&ratios).map_or_else(
                    || "–".to_owned(),
                    |ratio| match ratios.len() {
                        1 => number(ratio),
                        _ => format!("{} ({}–{})", number(ratio), number(low), number(high)),
                    },
                );
                let _ = write!(text, " {ratio} |");
            }
            let _ = writeln!(text, " {} |", goals(readings, *figure, cells));
        }
    }
    text
}
