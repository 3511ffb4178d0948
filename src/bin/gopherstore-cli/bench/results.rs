//! Measurements and their output.

use std::time::Duration;

use hdrhistogram::{CreationError, Histogram};
use serde::Serialize;

use super::workload::Kind;

/// Significant decimal digits of latencies.
const DIGITS: u8 = 3;

/// Percentiles and their names.
const PERCENTILES: [(&str, f64); 5] = [
    ("p50", 50.0),
    ("p90", 90.0),
    ("p99", 99.0),
    ("p99.9", 99.9),
    ("p99.99", 99.99),
];

/// Form of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Table,
    Json,
    Csv,
}

/// Operations of one kind.
#[derive(Clone, Debug)]
pub(super) struct Series {
    /// Latencies in nanoseconds of successful operations.
    latencies: Histogram<u64>,
    /// The GETs among these that found no value.
    missed: u64,
    /// Operations that were refused or have no response.
    errors: u64,
}

/// Measurements of one connection, or of all together.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    gets: Series,
    sets: Series,
    /// Operations that were due before the end and not sent.
    pub(super) unsent: u64,
    pub(super) elapsed: Duration,
}

impl Series {
    fn new() -> Result<Series, CreationError> {
        Ok(Series {
            latencies: Histogram::new(DIGITS)?,
            missed: 0,
            errors: 0,
        })
    }

    fn add(&mut self, other: &Series) {
        // It grows as needed.
        let _ = self.latencies.add(&other.latencies);
        self.missed += other.missed;
        self.errors += other.errors;
    }
}

impl Measured {
    /// No measurements.
    pub(super) fn new() -> Result<Measured, CreationError> {
        Ok(Measured {
            gets: Series::new()?,
            sets: Series::new()?,
            unsent: 0,
            elapsed: Duration::ZERO,
        })
    }

    fn series(&mut self, kind: Kind) -> &mut Series {
        match kind {
            Kind::Get => &mut self.gets,
            Kind::Set => &mut self.sets,
        }
    }

    pub(super) fn record(&mut self, kind: Kind, latency: Duration, was_found: bool) {
        let series = self.series(kind);
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        // It grows as needed; `saturating_record` would prevent that.
        let _ = series.latencies.record(nanos.max(1));
        series.missed += u64::from(!was_found);
    }

    pub(super) fn record_error(&mut self, kind: Kind) {
        self.series(kind).errors += 1;
    }

    /// Adds the measurements of another connection of the same run.
    pub(super) fn add(&mut self, other: &Measured) {
        self.gets.add(&other.gets);
        self.sets.add(&other.sets);
        self.unsent += other.unsent;
        self.elapsed = self.elapsed.max(other.elapsed);
    }

    /// Whether there are any measurements.
    pub(super) fn is_empty(&self) -> bool {
        [&self.gets, &self.sets]
            .iter()
            .all(|series| series.latencies.is_empty() && series.errors == 0)
    }
}

/// Parameters of a run in its results.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Conditions {
    /// The named node, which executes GETs.
    pub(super) addr: String,
    /// The leader, which executes SETs.
    pub(super) leader: String,
    pub(super) seed: u64,
    pub(super) connections: u64,
    pub(super) depth: u64,
    pub(super) value_bytes: String,
    pub(super) keys: u32,
    pub(super) distribution: &'static str,
    pub(super) get_percent: u8,
    /// The requested rate in operations a second.
    pub(super) rate: Option<u64>,
}

/// The output, in this order. Names and units are stable; later versions may add some.
#[derive(Debug, Serialize)]
struct Results<'a> {
    #[serde(flatten)]
    conditions: &'a Conditions,
    elapsed_s: f64,
    unsent: u64,
    /// Whether an error or a signal ended it early.
    is_partial: bool,
    operations: [Row; 3],
}

/// One kind of operation, or all together.
#[derive(Debug, Serialize)]
struct Row {
    operation: &'static str,
    count: u64,
    missed: u64,
    errors: u64,
    per_s: f64,
    /// In the order of the table; the last is the longest of all. Nothing where nothing was measured.
    #[serde(flatten)]
    latencies: Option<Latencies>,
}

#[derive(Debug, Serialize)]
struct Latencies {
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p99_9_us: f64,
    p99_99_us: f64,
    max_us: f64,
}

impl Latencies {
    fn of(histogram: &Histogram<u64>) -> Option<Latencies> {
        if histogram.is_empty() {
            return None;
        }
        let [p50_us, p90_us, p99_us, p99_9_us, p99_99_us] =
            PERCENTILES.map(|(_, at)| micros(histogram.value_at_percentile(at)));
        Some(Latencies {
            p50_us,
            p90_us,
            p99_us,
            p99_9_us,
            p99_99_us,
            max_us: micros(histogram.max()),
        })
    }

    const fn all(&self) -> [f64; 6] {
        [
            self.p50_us,
            self.p90_us,
            self.p99_us,
            self.p99_9_us,
            self.p99_99_us,
            self.max_us,
        ]
    }
}

impl Row {
    fn of(operation: &'static str, series: &Series, span: Duration) -> Row {
        let count = series.latencies.len();
        Row {
            operation,
            count,
            missed: series.missed,
            errors: series.errors,
            per_s: rounded(per_second(count, span)),
            latencies: Latencies::of(&series.latencies),
        }
    }
}

/// The time of this number of operations, for the rate in the results. With --rate it is at least their number divided
/// by the rate, since the last operation is due at the start of its own interval.
pub(super) fn span(count: u64, rate: Option<u64>, elapsed: Duration) -> Duration {
    let share = rate.filter(|&rate| rate > 0).map(|rate| {
        let nanos = u128::from(count) * 1_000_000_000 / u128::from(rate);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    });
    share.map_or(elapsed, |share| share.max(elapsed))
}

/// Operations a second; 0 without any.
pub(super) fn per_second(count: u64, span: Duration) -> f64 {
    if count == 0 || span.is_zero() {
        return 0.0;
    }
    float(count) / span.as_secs_f64()
}

/// A rate for people; that of a slow node is not rounded to 0.
pub(super) fn shown_rate(per_second: f64) -> String {
    let digits = match per_second {
        0.0 | 100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        0.01.. => 4,
        _ => 6,
    };
    format!("{per_second:.digits$}")
}

/// The results as text that ends with a line feed.
pub(super) fn shown(
    form: Form,
    conditions: &Conditions,
    measured: &Measured,
    is_partial: bool,
) -> String {
    let mut all = measured.gets.clone();
    all.add(&measured.sets);
    let span = span(
        all.latencies.len().saturating_add(all.errors),
        conditions.rate,
        measured.elapsed,
    );
    let row = |name, series| Row::of(name, series, span);
    let results = Results {
        conditions,
        elapsed_s: rounded(measured.elapsed.as_secs_f64()),
        unsent: measured.unsent,
        is_partial,
        operations: [
            row("get", &measured.gets),
            row("set", &measured.sets),
            row("all", &all),
        ],
    };
    match form {
        Form::Table => table(&results),
        Form::Csv => csv(&results),
        // It has only names and numbers, so this cannot fail.
        Form::Json => serde_json::to_string_pretty(&results).unwrap_or_default() + "\n",
    }
}

/// At most 40 columns wide, for any terminal.
fn table(results: &Results<'_>) -> String {
    let mut text = format!(
        "seed    {}\ntime    {}\n",
        results.conditions.seed,
        time(results.elapsed_s * 1e6)
    );
    if let Some(rate) = results.conditions.rate {
        text.push_str(&format!("rate    {rate}/s, {} unsent\n", results.unsent));
    }
    let mut line = |name: &str, cells: [String; 3]| {
        let [get, set, all] = cells;
        text.push_str(&format!("{name:<7}{get:>11}{set:>11}{all:>11}\n"));
    };
    let cells = |cell: &dyn Fn(&Row) -> String| results.operations.each_ref().map(cell);
    line("", cells(&|row| row.operation.to_uppercase()));
    line("count", cells(&|row| row.count.to_string()));
    line("per s", cells(&|row| shown_rate(row.per_s)));
    line("missed", cells(&|row| row.missed.to_string()));
    line("errors", cells(&|row| row.errors.to_string()));
    let names = PERCENTILES.iter().map(|(name, _)| *name).chain(["max"]);
    for (at, name) in names.enumerate() {
        let latency = |row: &Row| row.latencies.as_ref().map(|all| time(all.all()[at]));
        line(
            name,
            cells(&|row| latency(row).unwrap_or_else(|| "-".to_owned())),
        );
    }
    text
}

/// A heading and a line for each kind of operation. Names and numbers need no quotes.
fn csv(results: &Results<'_>) -> String {
    let mut text = "operation,count,missed,errors,per_s".to_owned();
    for (name, _) in PERCENTILES {
        text.push_str(&format!(",{}_us", name.replace('.', "_")));
    }
    text.push_str(",max_us,elapsed_s,unsent,seed\n");
    for row in &results.operations {
        let Row {
            operation,
            count,
            missed,
            errors,
            per_s,
            ..
        } = row;
        text.push_str(&format!("{operation},{count},{missed},{errors},{per_s}"));
        for at in 0..=PERCENTILES.len() {
            let latency = row.latencies.as_ref().map(|all| all.all()[at].to_string());
            text.push_str(&format!(",{}", latency.unwrap_or_default()));
        }
        text.push_str(&format!(
            ",{},{},{}\n",
            results.elapsed_s, results.unsent, results.conditions.seed
        ));
    }
    text
}

/// A time for people, with three or four significant digits.
fn time(micros: f64) -> String {
    let (value, unit) = match micros {
        _ if micros < 1e3 => (micros, "\u{b5}s"),
        _ if micros < 1e6 => (micros / 1e3, "ms"),
        _ => (micros / 1e6, "s"),
    };
    let digits = if value < 10.0 {
        2
    } else {
        usize::from(value < 1_000.0)
    };
    format!("{value:.digits$} {unit}")
}

fn micros(nanos: u64) -> f64 {
    float(nanos) / 1e3
}

#[expect(
    clippy::cast_precision_loss,
    reason = "53 bits are more than three digits"
)]
const fn float(number: u64) -> f64 {
    number as f64
}

/// Rounded to six decimals.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRETEND: Duration = Duration::from_secs(10);

    fn conditions() -> Conditions {
        Conditions {
            addr: "127.0.0.1:8001".to_owned(),
            leader: "127.0.0.1:8000".to_owned(),
            seed: u64::MAX,
            connections: 8,
            depth: 16,
            value_bytes: "16..1024".to_owned(),
            keys: 10_000,
            distribution: "uniform",
            get_percent: 90,
            rate: Some(1_000_000_000),
        }
    }

    fn measured() -> Measured {
        let Ok(mut measured) = Measured::new() else {
            unreachable!("no histogram")
        };
        for at in 1..=10_000 {
            measured.record(Kind::Get, Duration::from_micros(at), at % 10 > 0);
        }
        measured.record_error(Kind::Set);
        measured.unsent = u64::from(u32::MAX);
        measured.elapsed = PRETEND;
        measured
    }

    #[test]
    fn the_table_shows_all_and_fits_40_columns() {
        let table = shown(Form::Table, &conditions(), &measured(), false);
        let expected = "\
seed    18446744073709551615
time    10.0 s
rate    1000000000/s, 4294967295 unsent
               GET        SET        ALL
count        10000          0      10000
per s         1000          0       1000
missed        1000          0       1000
errors           0          1          1
p50        5.00 ms          -    5.00 ms
p90        9.00 ms          -    9.00 ms
p99        9.90 ms          -    9.90 ms
p99.9      9.99 ms          -    9.99 ms
p99.99     10.0 ms          -    10.0 ms
max        10.0 ms          -    10.0 ms
";
        assert_eq!(table, expected);
        assert!(table.lines().all(|line| line.chars().count() <= 40));
    }

    #[test]
    fn csv_has_as_many_fields_in_each_line() {
        let csv = shown(Form::Csv, &conditions(), &measured(), false);
        let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
        assert_eq!(lines.len(), 4);
        assert!(lines.iter().all(|line| line.len() == 14), "{csv}");
        assert_eq!(
            lines[0][5..11].join(","),
            "p50_us,p90_us,p99_us,p99_9_us,p99_99_us,max_us"
        );
        assert_eq!(lines[1][..5].join(","), "get,10000,1000,0,1000");
        assert_eq!(lines[2][..6].join(","), "set,0,0,1,0,");
    }

    #[test]
    fn json_has_the_percentiles_to_three_digits() {
        let json = shown(Form::Json, &conditions(), &measured(), true);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap_or_default();
        assert_eq!(value["seed"], u64::MAX);
        assert_eq!(value["is_partial"], true);
        let get = &value["operations"][0];
        assert_eq!(get["operation"], "get");
        for (name, expected) in [
            ("p50_us", 5_000.0),
            ("p99_9_us", 9_990.0),
            ("max_us", 10_000.0),
        ] {
            let figure = get[name].as_f64().unwrap_or_default();
            assert!(
                (figure / expected - 1.0_f64).abs() < 0.001,
                "{name} {figure}"
            );
        }
        assert_eq!(value["operations"][1].get("p50_us"), None);
    }

    /// Every number in a JSON value.
    fn numbers(value: &serde_json::Value) -> Vec<f64> {
        match value {
            serde_json::Value::Array(all) => all.iter().flat_map(numbers).collect(),
            serde_json::Value::Object(all) => all.values().flat_map(numbers).collect(),
            value => value.as_f64().into_iter().collect(),
        }
    }

    #[test]
    fn a_rate_is_never_exceeded_in_the_figures() {
        for (count, rate, elapsed, expected) in [
            (1, 1, Duration::from_micros(1_600), 1.0),
            (3, 1, Duration::from_secs(2), 1.0),
            (100, 500, Duration::from_millis(198), 500.0),
            (100, 500, Duration::from_secs(1), 100.0),
            (1, 1_000_000_000, Duration::ZERO, 1e9),
        ] {
            let found = per_second(count, span(count, Some(rate), elapsed));
            assert!(
                (found - expected).abs() < expected / 1e3,
                "{count} at {rate}: {found}"
            );
        }
        assert_eq!(
            span(1, None, Duration::from_micros(7)),
            Duration::from_micros(7)
        );
    }

    #[test]
    fn a_run_without_measurements_has_results_too() {
        let Ok(mut empty) = Measured::new() else {
            unreachable!("no histogram")
        };
        for elapsed in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            empty.elapsed = elapsed;
            for rate in [None, Some(1)] {
                let conditions = Conditions {
                    rate,
                    ..conditions()
                };
                let json = shown(Form::Json, &conditions, &empty, true);
                let value: serde_json::Value = serde_json::from_str(&json).unwrap_or_default();
                assert_eq!(value["operations"][2]["count"], 0, "{json}");
                assert_eq!(value["operations"][2]["per_s"], 0.0, "{json}");
                for form in [Form::Table, Form::Csv, Form::Json] {
                    let text = shown(form, &conditions, &empty, true);
                    assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
                }
                assert!(numbers(&value).iter().all(|number| number.is_finite()));
            }
        }
    }

    #[test]
    fn a_slow_run_is_not_shown_as_none() {
        for (rate, expected) in [
            (0.0, "0"),
            (0.000_278, "0.000278"),
            (0.2, "0.2000"),
            (1.0, "1.00"),
            (12.34, "12.3"),
            (599.6, "600"),
        ] {
            assert_eq!(shown_rate(rate), expected);
        }
    }

    #[test]
    fn times_are_short() {
        for (micros, expected) in [
            (0.5, "0.50 \u{b5}s"),
            (12.34, "12.3 \u{b5}s"),
            (999.9, "999.9 \u{b5}s"),
            (1_234.0, "1.23 ms"),
            (123_456.0, "123.5 ms"),
            (5_000_000.0, "5.00 s"),
            (4e9, "4000 s"),
        ] {
            assert_eq!(time(micros), expected);
        }
    }
}
