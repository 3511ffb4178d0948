//! The role of a process and its stream: it asks its peers, and does what the driver of the role says.

use std::time::{Duration, Instant};

use super::super::asking::Asked;
use super::super::following::{Following, Turn};
use super::super::load::node_at;
use super::super::network::Signal;
use super::super::shared::Shared;
use super::{Process, Wake, micros, peer_addr};
use crate::replication::core::report::Contact;
use crate::replication::driver::{Ended, Outcome, Task};
use crate::replication::stream::FollowError;
use crate::replication::stream::following::FollowerStream;

/// Shortest and longest timeout of a question, and the pause between two in a hurry: as in the transport.
const ASK_MIN: Duration = Duration::from_secs(1);
const ASK_MAX: Duration = Duration::from_secs(5);
const HURRIED_PAUSE: Duration = Duration::from_millis(20);

impl Process<'_> {
    /// Asks a peer, or goes on with the question.
    pub(super) fn ask(&mut self, at: usize, signal: Option<Signal>, shared: &mut Shared) {
        let replication = &self.member.replication;
        let interval = replication.heartbeat_interval;
        let (pause, timeout) = if self.is_hurried {
            (
                HURRIED_PAUSE.min(interval),
                replication.leader_timeout.min(ASK_MAX),
            )
        } else {
            (interval, interval)
        };
        let now = shared.timeline.now();
        let (asking, _) = &mut self.askings[at];
        if let (Some(due), None) = (asking.due(pause), signal) {
            if due > now {
                return self.wake_at(Wake::Ask(at), due, shared);
            }
            let deadline = now + micros(timeout.max(ASK_MIN));
            asking.begin(deadline, &mut shared.network, &mut shared.timeline);
            return self.wake_at(Wake::Ask(at), deadline, shared);
        }
        match asking.step(
            signal,
            self.member,
            &mut shared.network,
            &mut shared.timeline,
        ) {
            None => {}
            Some(Asked::Wait(until)) => self.wake_at(Wake::Ask(at), until, shared),
            Some(Asked::Ended(contact, began)) => {
                self.due.remove(&Wake::Ask(at));
                self.wake_at(Wake::Ask(at), now + micros(pause), shared);
                self.contact(at, contact, began, shared);
            }
        }
    }

    /// A question has ended.
    fn contact(&mut self, at: usize, contact: Contact, began: Instant, shared: &mut Shared) {
        let (asking, watch) = &mut self.askings[at];
        let (host, name) = (self.host, &asking.peer.name);
        shared.count("questions");
        shared.note(host, || match &contact {
            Contact::Report(report) => format!(
                "hears of {name}: {:?}, {:?}, stopping {:?}, epoch {}, index {}",
                report.role, report.state, report.stopping, report.epoch, report.index
            ),
            other => format!("hears of {name}: {other:?}"),
        });
        self.has_news = true;
        if watch.contact(contact, began, shared.timeline.instant())
            && let Some(following) = &self.following
        {
            let error = following.stream.closed();
            self.end_following(Outcome::Failed(error), shared);
        }
    }

    /// Has the node's peers asked often, or not.
    fn hurry(&mut self, shared: &mut Shared) {
        let now = shared.timeline.instant();
        let is_hurried = self.following.is_none() && self.driver.is_hurried(now)
            || self.replica.peers.is_stopping();
        if is_hurried && !self.is_hurried {
            for at in 0..self.askings.len() {
                if let Some(due) = self.askings[at].0.due(HURRIED_PAUSE) {
                    self.wake_at(Wake::Ask(at), due, shared);
                }
            }
        }
        self.is_hurried = is_hurried;
    }

    /// Does what the driver of the role says.
    pub(super) fn drive(&mut self, shared: &mut Shared) {
        self.has_news = false;
        if let Some(storing) = &self.storing {
            storing.set_now(shared.timeline.instant());
        }
        for _ in 0..10 {
            if self.following.is_some() {
                break;
            }
            let now = shared.timeline.instant();
            match self.driver.next(shared.random.next(), now) {
                Task::Wait(until) if until > now => {
                    let until = shared.timeline.micros_of(until);
                    self.wake_at(Wake::Driver, until, shared);
                    break;
                }
                Task::Wait(_) => {}
                Task::Stream { peer, goal } => {
                    let stream = FollowerStream::new(self.replica, self.member, &peer.name, goal);
                    let to = node_at(peer_addr(peer)).expect("its address");
                    shared.note(self.host, || {
                        format!("asks {} for the stream: {goal:?}", peer.name)
                    });
                    let following = Following::begin(stream, peer, self.host, to, shared);
                    self.following = Some(following);
                    self.step_following(None, shared);
                }
            }
        }
        self.take_restored(shared);
        self.hurry(shared);
    }

    pub(super) fn step_following(&mut self, signal: Option<Signal>, shared: &mut Shared) {
        let Some(following) = &mut self.following else {
            return;
        };
        let turn = following.step(signal, shared);
        if following.stream.is_in_snapshot() {
            self.copies_from = following.leader;
        }
        let leader_time = following.leader_time;
        let time_ms = leader_time.unwrap_or_default();
        self.clock_check.pulled(time_ms, &shared.timeline);
        self.clock_now(shared);
        if let (Turn::Ended(Outcome::Reached), None) = (&turn, leader_time) {
            let text = "it may lead with the data of a node whose time it does not know";
            shared.fail(self.host, text);
        }
        match turn {
            Turn::Wait(until) => self.wake_at(Wake::Follow, until, shared),
            Turn::Ended(outcome) => self.end_following(outcome, shared),
        }
    }

    /// The stream from the leader has ended.
    fn end_following(&mut self, outcome: Outcome, shared: &mut Shared) {
        let Some(following) = self.following.take() else {
            return;
        };
        let host = self.host;
        shared.note(host, || format!("follows no longer: {outcome:?}"));
        match &outcome {
            Outcome::Failed(FollowError::Diverged(text)) => {
                shared.fail(host, &format!("diverged: {text}"));
            }
            Outcome::Failed(FollowError::Protocol(text))
                if !text.ends_with(" ended the stream") =>
            {
                shared.fail(host, &format!("a stream broke the protocol: {text}"));
            }
            Outcome::Failed(_) | Outcome::Reached | Outcome::Lead(_) => {}
        }
        if following.stream.is_in_snapshot() {
            shared.count("copies cut off");
        }
        shared.logged.remove(&following.end);
        shared.network.close(following.end, &mut shared.timeline);
        self.due.remove(&Wake::Follow);
        let ended = Ended {
            outcome,
            has_followed: following.stream.has_followed(),
            is_in_snapshot: following.stream.is_in_snapshot(),
        };
        if let Some(storing) = &self.storing {
            storing.set_now(shared.timeline.instant());
        }
        self.driver
            .ended(ended, shared.random.next(), shared.timeline.instant());
        following.stream.end();
        self.take_restored(shared);
        self.has_news = true;
    }
}
