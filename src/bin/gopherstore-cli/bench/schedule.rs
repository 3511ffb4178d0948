//! The schedule of a connection. Pure: the time since the start is passed in.
//!
//! Operations are numbered over all connections. Connection c of n has the numbers c, c + n, c + 2n and so on, whatever
//! the speed of the connections.
//!
//! # Coordinated omission
//!
//! A generator that waits for a response sends nothing during a pause of the node. It then records one long latency,
//! where real clients would have thousands. With a rate, each operation has a due time, `number / rate`. A late
//! operation is sent as soon as possible, and its latency counts from the due time.

use std::{num::NonZeroU64, time::Duration};

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// End of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// After this number of operations of all connections.
    Count(u64),
    /// After this time.
    Duration(Duration),
}

/// Next action of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Send this number of operations at once; at least 1.
    Send(u64),
    /// Nothing is due before this time.
    Wait(Duration),
    /// The run is over.
    Over,
}

/// The operations of one connection and their due times.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    connection: u64,
    connections: u64,
    /// Operations a second of all connections; `None` for no rate.
    rate: Option<NonZeroU64>,
    end: End,
    /// Operations of this connection that are sent.
    sent: u64,
}

impl Schedule {
    pub(super) const fn new(
        connection: u64,
        connections: u64,
        rate: Option<NonZeroU64>,
        end: End,
    ) -> Schedule {
        Schedule {
            connection,
            connections,
            rate,
            end,
            sent: 0,
        }
    }

    /// The action at `now`, for at most `depth` operations.
    pub(super) fn next(&self, now: Duration, depth: u64) -> Action {
        if let End::Duration(end) = self.end
            && now >= end
        {
            return Action::Over;
        }
        let exists = |ahead: &u64| self.exists(*ahead);
        let is_due = |ahead: &u64| self.due(*ahead).is_none_or(|due| due <= now);
        let count = (0..depth).take_while(exists).take_while(is_due).count();
        match (u64::try_from(count), self.due(0)) {
            (Ok(0), Some(due)) if self.exists(0) => Action::Wait(due),
            (Ok(0) | Err(_), _) => Action::Over,
            (Ok(count), _) => Action::Send(count),
        }
    }

    /// Due time of the operation that comes `ahead` others after the sent ones; `None` without a rate.
    pub(super) fn due(&self, ahead: u64) -> Option<Duration> {
        let rate = u128::from(self.rate?.get());
        let nanos = u128::from(self.number(ahead)) * NANOS_PER_SECOND / rate;
        // At most 584 years.
        Some(Duration::from_nanos(
            u64::try_from(nanos).unwrap_or(u64::MAX),
        ))
    }

    /// Notes that the next `count` operations are sent.
    pub(super) const fn advance(&mut self, count: u64) {
        self.sent += count;
    }

    /// Number of operations that were due before `now` or the end, and are not sent.
    pub(super) fn unsent(&self, now: Duration) -> u64 {
        let Some(rate) = self.rate else { return 0 };
        let nanos_max = match self.end {
            End::Count(_) => now.as_nanos(),
            // An operation that is due exactly at the end is not part of the run.
            End::Duration(end) => now.as_nanos().min(end.as_nanos().saturating_sub(1)),
        };
        // The last number that is due: the largest with number × 10^9 / rate, rounded down, within the time.
        let last = ((nanos_max + 1) * u128::from(rate.get()) - 1) / NANOS_PER_SECOND;
        let mut last = u64::try_from(last).unwrap_or(u64::MAX);
        if let End::Count(count) = self.end {
            match count.checked_sub(1) {
                Some(end) => last = last.min(end),
                None => return 0,
            }
        }
        let due = match last.checked_sub(self.connection) {
            Some(after) => after / self.connections + 1,
            None => 0,
        };
        due.saturating_sub(self.sent)
    }

    fn exists(&self, ahead: u64) -> bool {
        match self.end {
            End::Count(count) => self.number(ahead) < count,
            End::Duration(end) => self.due(ahead).is_none_or(|due| due < end),
        }
    }

    /// The number of the operation that comes `ahead` others after the sent ones.
    const fn number(&self, ahead: u64) -> u64 {
        (self.sent + ahead)
            .saturating_mul(self.connections)
            .saturating_add(self.connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn quantile(sorted: &[Duration], at: f64) -> Duration {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "small and positive"
        )]
        let rank = (sorted.len() as f64 * at) as usize;
        sorted[rank.min(sorted.len() - 1)]
    }

    /// Runs one connection against a node that responds after 100 µs, but pauses for `stall` from 1 s on. Returns the
    /// sorted latencies from the due times, and from the times of sending.
    fn simulate(
        mut schedule: Schedule,
        depth: u64,
        stall: Duration,
    ) -> (Vec<Duration>, Vec<Duration>) {
        let (mut now, mut from_due, mut from_sent) = (Duration::ZERO, Vec::new(), Vec::new());
        loop {
            match schedule.next(now, depth) {
                Action::Over => break,
                Action::Wait(until) => {
                    assert!(until > now, "a wait for what is past");
                    now = until;
                }
                Action::Send(count) => {
                    assert!(count <= depth);
                    let sent = now;
                    now += Duration::from_micros(100);
                    if sent < ms(1_000) + stall && now > ms(1_000) {
                        now = now.max(ms(1_000) + stall);
                    }
                    for ahead in 0..count {
                        let due = schedule.due(ahead).unwrap_or(sent);
                        assert!(due <= sent, "sent before it was due");
                        from_due.push(now - due);
                        from_sent.push(now - sent);
                    }
                    schedule.advance(count);
                }
            }
        }
        from_due.sort();
        from_sent.sort();
        (from_due, from_sent)
    }

    #[test]
    fn a_pause_of_the_node_shows_in_the_percentiles() {
        let schedule = Schedule::new(0, 1, NonZeroU64::new(1_000), End::Count(10_000));
        let (from_due, from_sent) = simulate(schedule.clone(), 1, ms(2_000));
        assert_eq!(from_due.len(), 10_000, "the schedule is kept");
        // The operations that were due in the 2 s, and those that were late because of them, are a little more than a
        // fifth.
        assert!(quantile(&from_due, 0.5) < ms(1));
        assert!(quantile(&from_due, 0.9) > ms(1_000));
        assert!(quantile(&from_due, 0.99) > ms(1_850));
        assert_eq!(from_due.last(), Some(&ms(2_000)));
        // Measured from the times of sending, one response is slow.
        assert!(quantile(&from_sent, 0.999) < ms(1));
        assert_eq!(from_sent.last(), Some(&ms(2_000)));

        let (healthy, _) = simulate(schedule, 1, Duration::ZERO);
        assert_eq!(healthy.last(), Some(&Duration::from_micros(100)));
    }

    #[test]
    fn late_operations_are_sent_together_up_to_the_depth() {
        let mut schedule = Schedule::new(0, 1, NonZeroU64::new(1_000), End::Count(100));
        assert_eq!(schedule.next(ms(0), 8), Action::Send(1));
        schedule.advance(1);
        assert_eq!(schedule.next(ms(0), 8), Action::Wait(ms(1)));
        assert_eq!(schedule.next(ms(3), 8), Action::Send(3));
        assert_eq!(schedule.next(ms(50), 8), Action::Send(8));
        assert_eq!(schedule.unsent(ms(50)), 50);
        schedule.advance(98);
        assert_eq!(schedule.next(ms(98), 8), Action::Wait(ms(99)));
        assert_eq!(schedule.next(ms(5_000), 8), Action::Send(1));
        assert_eq!(schedule.unsent(ms(5_000)), 1);
        schedule.advance(1);
        assert_eq!(schedule.next(ms(5_000), 8), Action::Over);
        assert_eq!(schedule.unsent(ms(5_000)), 0);
    }

    #[test]
    fn without_a_rate_it_is_sent_at_once() {
        let mut schedule = Schedule::new(0, 1, None, End::Count(20));
        assert_eq!(schedule.next(ms(0), 16), Action::Send(16));
        schedule.advance(16);
        assert_eq!(schedule.due(0), None);
        assert_eq!(schedule.next(ms(0), 16), Action::Send(4));
        schedule.advance(4);
        assert_eq!(schedule.next(ms(0), 16), Action::Over);
        let schedule = Schedule::new(0, 1, None, End::Duration(ms(10)));
        assert_eq!(schedule.next(ms(9), 16), Action::Send(16));
        assert_eq!(schedule.next(ms(10), 16), Action::Over);
        assert_eq!(schedule.unsent(ms(10)), 0);
    }

    #[test]
    fn connections_share_the_operations_evenly_and_leave_none_out() {
        for count in [0, 1, 7, 100, 101] {
            let mut numbers = Vec::new();
            for connection in 0..7 {
                let mut schedule = Schedule::new(connection, 7, None, End::Count(count));
                while let Action::Send(some) = schedule.next(ms(0), 3) {
                    numbers.extend((0..some).map(|ahead| schedule.number(ahead)));
                    schedule.advance(some);
                }
            }
            numbers.sort_unstable();
            assert_eq!(numbers, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_rate_and_a_time_make_a_number_of_operations() {
        for (rate, connections) in [(1, 1), (3, 2), (1_000, 7), (999_999, 64)] {
            let mut total = 0;
            for connection in 0..connections {
                let end = End::Duration(ms(3_000));
                let mut schedule =
                    Schedule::new(connection, connections, NonZeroU64::new(rate), end);
                let unsent = schedule.unsent(ms(3_000));
                let mut now = Duration::ZERO;
                let mut sent = 0;
                loop {
                    match schedule.next(now, 1_000) {
                        Action::Over => break,
                        Action::Wait(until) => now = until,
                        Action::Send(count) => {
                            sent += count;
                            schedule.advance(count);
                        }
                    }
                }
                assert_eq!(sent, unsent, "{rate} {connections} {connection}");
                assert_eq!(schedule.unsent(ms(3_000)), 0);
                total += sent;
            }
            assert_eq!(total, rate * 3);
        }
    }
}
