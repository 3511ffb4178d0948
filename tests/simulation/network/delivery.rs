//! The delivery of what is sent: when it arrives, and what waits for a link that is cut.

use super::{
    Connection, End, Host, MS, Micros, Network, NetworkEvent, RETRANSMISSION, Segment, Signal,
    State, Timeline,
};

impl Network {
    pub(super) fn asked<E: From<NetworkEvent>>(
        &mut self,
        at: usize,
        timeline: &mut Timeline<E>,
    ) -> Option<(End, Signal)> {
        let connection = self.connections[at].as_mut()?;
        let [from, to] = connection.hosts;
        if connection.states[0] != State::Connecting {
            return None;
        }
        let is_lost = self.links[from][to].is_cut || self.links[to][from].is_cut;
        if is_lost || self.hosts[to] == Host::Silent {
            timeline.after(RETRANSMISSION, NetworkEvent::Asked(at).into());
            return None;
        }
        let end = End {
            connection: at,
            side: 1,
        };
        if self.hosts[to] == Host::Refuses {
            connection.states[1] = State::Closed;
            self.send_reset(end.other(), timeline);
            return None;
        }
        connection.states[1] = State::Open;
        let answered = NetworkEvent::Answered(at);
        timeline.at(self.arrival(to, from, 0, timeline.now()), answered.into());
        Some((end, Signal::Accepted))
    }

    pub(super) fn answered(&mut self, at: usize) -> Option<(End, Signal)> {
        let connection = self.connections[at].as_mut()?;
        let end = End {
            connection: at,
            side: 0,
        };
        if connection.states[0] == State::Connecting {
            connection.states[0] = State::Open;
        }
        Some((end, Signal::Connected))
    }

    pub(super) fn arrived<E: From<NetworkEvent>>(
        &mut self,
        end: End,
        timeline: &mut Timeline<E>,
    ) -> Option<(End, Signal)> {
        let connection = self.connections[end.connection].as_mut()?;
        let to = connection.hosts[1 - end.side];
        let state = connection.states[1 - end.side];
        let pipe = &mut connection.pipes[end.side];
        pipe.under_way = pipe.under_way.checked_sub(1)?;
        if self.hosts[to] == Host::Silent {
            // The machine may come back before the sender gives up.
            pipe.under_way = 0;
            return None;
        }
        let segment = pipe.sent.pop_front()?;
        if state != State::Open {
            if segment.bytes.is_empty() {
                self.forget_if_over(end.connection);
            } else {
                self.send_reset(end, timeline);
            }
            return None;
        }
        pipe.arrived.extend_from_slice(&segment.bytes);
        pipe.has_ended |= segment.ends;
        Some((end.other(), Signal::Readable))
    }

    /// Sends a segment, or has it wait where the link is cut.
    pub(super) fn send<E: From<NetworkEvent>>(
        &mut self,
        end: End,
        segment: Segment,
        timeline: &mut Timeline<E>,
    ) {
        let Some(connection) = &mut self.connections[end.connection] else {
            return;
        };
        let (from, to) = (connection.hosts[end.side], connection.hosts[1 - end.side]);
        let len = segment.bytes.len();
        let pipe = &mut connection.pipes[end.side];
        let is_stalled = self.links[from][to].is_cut || pipe.under_way < pipe.sent.len();
        pipe.sent.push_back(segment);
        if is_stalled {
            return;
        }
        let arrival = self.arrival(from, to, len, timeline.now());
        if let Some(connection) = &mut self.connections[end.connection] {
            let pipe = &mut connection.pipes[end.side];
            pipe.under_way += 1;
            pipe.last_arrival = pipe.last_arrival.max(arrival);
            timeline.at(pipe.last_arrival, NetworkEvent::Arrived(end).into());
        }
    }

    /// Sends again what has waited for a link.
    pub(super) fn resend<E: From<NetworkEvent>>(
        &mut self,
        from: usize,
        to: usize,
        timeline: &mut Timeline<E>,
    ) {
        if self.links[from][to].is_cut {
            return;
        }
        for at in 0..self.connections.len() {
            for side in [0, 1] {
                let Some(connection) = &mut self.connections[at] else {
                    continue;
                };
                if connection.hosts[side] != from || connection.hosts[1 - side] != to {
                    continue;
                }
                let end = End {
                    connection: at,
                    side,
                };
                let wait = self.random.below(RETRANSMISSION);
                // The reading side's news of what it has read go this way, too.
                let back = &mut connection.pipes[1 - side];
                if back.wants_room && back.unread <= self.capacity / 2 {
                    back.wants_room = false;
                    timeline.after(wait, NetworkEvent::Read(end.other()).into());
                }
                let waiting = std::mem::take(&mut connection.pipes[side].sent);
                let pipe = &mut connection.pipes[side];
                let mut waiting = waiting.into_iter();
                pipe.sent.extend(waiting.by_ref().take(pipe.under_way));
                pipe.last_arrival = pipe.last_arrival.max(timeline.now() + wait);
                for segment in waiting {
                    self.send(end, segment, timeline);
                }
            }
        }
    }

    /// A reset is on its way to this end, where the link is not cut.
    pub(super) fn send_reset<E: From<NetworkEvent>>(
        &mut self,
        to: End,
        timeline: &mut Timeline<E>,
    ) {
        let Some(connection) = &self.connections[to.connection] else {
            return;
        };
        let (from_host, to_host) = (connection.hosts[1 - to.side], connection.hosts[to.side]);
        let last = connection.pipes[1 - to.side].last_arrival;
        if !self.links[from_host][to_host].is_cut {
            let arrival = self.arrival(from_host, to_host, 0, timeline.now());
            timeline.at(arrival.max(last), NetworkEvent::Reset(to).into());
        }
    }

    /// When bytes that are sent now arrive.
    pub(super) fn arrival(&mut self, from: usize, to: usize, len: usize, now: Micros) -> Micros {
        let link = &mut self.links[from][to];
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        link.free_at = link.free_at.max(now) + len * MS / link.bandwidth;
        link.free_at + link.delay + self.random.below(link.jitter + 1)
    }

    /// Frees the memory of a connection that has ended on both sides, and on which nothing is under way.
    pub(super) fn forget_if_over(&mut self, at: usize) {
        let is_over = |connection: &Connection| {
            connection.states == [State::Closed; 2]
                && connection.pipes.iter().all(|pipe| pipe.under_way == 0)
        };
        if self.connections[at].as_deref().is_some_and(is_over) {
            self.connections[at] = None;
        }
    }
}
