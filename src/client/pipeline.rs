//! Pipelines: many requests in flight on one connection.
//!
//! # No deadlock
//!
//! A node answers in order, stops reading while its responses are not read, and never delays a response while it waits
//! for input. A client that only writes may therefore wait for the node while the node waits for the client. This
//! client waits in a write only when every whole request is answered, and otherwise in a read:
//!
//! * *Waiting in a write*: the node has answered every whole request, and the client has read every response, so the
//!   node has nothing to write and reads the rest of the request that is being sent. (If it refuses that request on its
//!   header, it writes one short response, which fits the socket's buffers, and goes on reading.)
//! * *Waiting in a read*: at least one whole request without a response is in the system's buffers. The node reads
//!   unless it is writing responses, which the client reads. So the node reads that request and answers it.
//!
//! This holds for any size of the sockets' buffers. The window bounds the bytes that a node reads ahead, keeps writes
//! large, and saves calls that the system would refuse.

use std::{
    mem,
    time::{Duration, Instant},
};

use crate::wire::{
    EncodeError, Opcode, Request, SyncRequest,
    request::{ANY_VALUE, Parsed, parse},
};

use super::{
    Client, Direction, REDIRECTS_MAX, Route,
    connection::{Connection, Deadline},
    error::{Error, PipelineError, Result},
    response::Response,
};

/// Most bytes of requests without a response. A longer request is sent when every other is answered.
const WINDOW_LEN: usize = 16 << 10;

/// Requests that are sent together; made by [`Client::pipeline`].
///
/// ```
/// use gopherstore::client::{Response, Client};
/// # use gopherstore::{config::LimitsConfig, node::Node, server::Server};
/// # let node = Node::alone();
/// # let server = Server::bind("127.0.0.1:0", node, LimitsConfig::default())?;
/// # let addr = &server.local_addr().to_string();
/// # std::thread::spawn(|| server.run());
///
/// let mut client = Client::connect(addr)?;
/// let mut pipeline = client.pipeline();
/// pipeline.set(b"a", b"1").get(b"a");
/// for _ in 0..100_000 {
///     pipeline.ping();
/// }
/// let responses = pipeline.run()?;
/// assert_eq!(responses.len(), 100_002);
/// assert!(matches!(&responses[1], Ok(Response::Value(value)) if value == b"1"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Pipeline<'a> {
    client: &'a mut Client,
    queue: Queue,
    /// Error of the first request that is too long for a frame.
    too_long: Option<EncodeError>,
}

impl<'a> Pipeline<'a> {
    pub(super) fn new(client: &'a mut Client) -> Pipeline<'a> {
        Pipeline {
            client,
            queue: Queue::default(),
            too_long: None,
        }
    }

    /// Queues a SET.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> &mut Self {
        self.request(&Request::Set { key, value })
    }

    /// Queues a GET.
    pub fn get(&mut self, key: &[u8]) -> &mut Self {
        self.request(&Request::Get { key })
    }

    /// Queues a DEL.
    pub fn del(&mut self, key: &[u8]) -> &mut Self {
        self.request(&Request::Del { key })
    }

    /// Queues a LIST of one key; its response's value is for [`ListAnswer::decode`].
    ///
    /// [`ListAnswer::decode`]: crate::wire::comparison::ListAnswer::decode
    pub fn list(&mut self, key: &[u8]) -> &mut Self {
        self.request(&Request::List { key, value: b"" })
    }

    /// Queues a PING.
    pub fn ping(&mut self) -> &mut Self {
        self.request(&Request::Ping)
    }

    /// Queues a request of any operation but FOLLOW.
    pub fn request(&mut self, request: &Request<'_>) -> &mut Self {
        match self.queue.push(request) {
            Ok(()) => self,
            Err(error) => self.refuse(error),
        }
    }

    /// Notes a request that is too long for a frame.
    pub(super) fn refuse(&mut self, error: EncodeError) -> &mut Self {
        self.too_long.get_or_insert(error);
        self
    }

    /// The number of queued requests.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether no request is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sends the queued requests and returns a response for each, in order. The queue is then empty.
    ///
    /// A refusal (ERROR, LOADING) is an `Err` in its place, and does not stop the others. The
    /// [timeout](super::ClientOptions::timeout) starts again with each response; the first one includes connecting.
    ///
    /// All requests use one connection, so that each sees the effects of those before it. It is the connection to the
    /// leader where that is known and there is a write in the queue. When a write is refused with the leader's address,
    /// that request and all behind it are sent there, reads included. There is one exception: if the node became leader
    /// meanwhile and executed a later write of the queue, a repetition could change its effect, and the refused write
    /// stays an [`Error::NotLeader`].
    ///
    /// # Errors
    ///
    /// [`PipelineError`], with the responses before the fault, when the connection fails. Nothing is sent when a key or
    /// value is too long for a frame.
    pub fn run(&mut self) -> std::result::Result<Vec<Result<Response>>, PipelineError> {
        let untimed = |(response, _)| response;
        let mut responses = Vec::new();
        match self.run_timed(&mut responses) {
            Ok(()) => Ok(responses.into_iter().map(untimed).collect()),
            Err(error) => Err(PipelineError {
                responses: responses.into_iter().map(untimed).collect(),
                error,
            }),
        }
    }

    /// Like [`run`](Self::run), for measurements: puts the responses into `responses`, each with the time at which its
    /// last byte was received. The memory of the queue and of `responses` is reused.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run); the responses before the fault are in `responses`.
    pub fn run_timed(&mut self, responses: &mut Vec<Timed>) -> Result<()> {
        responses.clear();
        let mut queue = mem::take(&mut self.queue);
        let result = match self.too_long.take() {
            Some(error) => Err(error.into()),
            None => self.client.run(&queue, responses),
        };
        if queue.bytes.capacity() <= Client::FRAME_KEPT_MAX {
            queue.bytes.clear();
            queue.requests.clear();
            self.queue = queue;
        }
        result
    }
}

/// A response, and the time at which its last byte was received.
pub type Timed = (Result<Response>, Instant);

/// Encoded requests, one after another.
#[derive(Debug, Default)]
pub(super) struct Queue {
    bytes: Vec<u8>,
    /// Each request's opcode, and the offset in `bytes` of its end.
    requests: Vec<(Opcode, usize)>,
}

impl Queue {
    pub(super) fn push(&mut self, request: &Request<'_>) -> std::result::Result<(), EncodeError> {
        request.encode(&mut self.bytes)?;
        self.requests.push((request.opcode(), self.bytes.len()));
        Ok(())
    }

    fn len(&self) -> usize {
        self.requests.len()
    }

    fn opcode(&self, at: usize) -> Opcode {
        self.requests[at].0
    }

    fn start(&self, at: usize) -> usize {
        at.checked_sub(1).map_or(0, |before| self.end(before))
    }

    fn end(&self, at: usize) -> usize {
        self.requests[at].1
    }

    /// How long a request may wait at the node by itself.
    fn wait(&self, at: usize) -> Duration {
        if self.opcode(at) != Opcode::Sync {
            return Duration::ZERO;
        }
        let frame = &self.bytes[self.start(at)..self.end(at)];
        match parse(frame, &ANY_VALUE) {
            Ok(Parsed::Whole(frame)) => SyncRequest::wait_of(&frame.request()),
            Ok(Parsed::Incomplete { .. }) | Err(_) => Duration::ZERO,
        }
    }

    fn has_write(&self) -> bool {
        self.requests
            .iter()
            .any(|&(opcode, _)| opcode.spec().writes)
    }
}

impl Client {
    fn run(&mut self, queue: &Queue, responses: &mut Vec<Timed>) -> Result<()> {
        self.was_unsent = false;
        let mut route = self.route(queue.has_write());
        let mut redirects_left = if self.options.follow_redirects {
            REDIRECTS_MAX
        } else {
            0
        };
        let mut deadline = Deadline::after(self.options.timeout).sooner(self.until);
        while responses.len() < queue.len() {
            let mut connection = self.open(route, deadline)?;
            let refused = Run {
                connection: &mut connection,
                queue,
                responses: &mut *responses,
                deadline: Some(deadline),
            }
            .run(redirects_left > 0)?;
            let Some(leader) = refused else {
                let refuses =
                    |(response, _): &Timed| matches!(response, Err(Error::NotLeader { .. }));
                // As for a single request: a leader that has ceased to lead is forgotten.
                if route == Route::Home || !responses.iter().any(refuses) {
                    self.put_back(route, connection);
                }
                return Ok(());
            };
            redirects_left -= 1;
            let asked = connection.addr().to_owned();
            if route == Route::Home {
                self.put_back(route, connection);
            }
            deadline = Deadline::after(self.options.timeout).sooner(self.until);
            route = self.follow(&leader, &asked, deadline)?;
        }
        Ok(())
    }
}

/// One attempt at the requests of `queue` that have no response in `responses`.
struct Run<'a> {
    connection: &'a mut Connection,
    queue: &'a Queue,
    /// The responses so far; the next one belongs to request `responses.len()`.
    responses: &'a mut Vec<Timed>,
    /// Deadline of the next response, where it includes connecting.
    deadline: Option<Deadline>,
}

impl Run<'_> {
    /// Returns the leader's address if the requests from `responses.len()` on have to be sent there.
    fn run(&mut self, follow: bool) -> Result<Option<String>> {
        let mut refused: Option<(usize, String)> = None;
        // Requests before `admitted` may be sent; bytes before `sent` are. `shown` counts those the hook has seen.
        let mut admitted = self.responses.len();
        let mut sent = self.queue.start(admitted);
        let mut shown = admitted;
        while self.responses.len() < self.queue.len() {
            let next = self.responses.len();
            match refused {
                None => admitted = self.admit(admitted),
                // Every request that was sent must be answered, so that no response remains.
                Some(_) => {
                    while admitted > next && self.queue.start(admitted - 1) >= sent {
                        admitted -= 1;
                    }
                }
            }
            if next == admitted
                && let Some((at, leader)) = refused.take()
            {
                if self.was_written_since(at) {
                    // The node became leader meanwhile, so the rest is sent to it.
                    return self.run(false);
                }
                self.responses.truncate(at);
                self.connection.expect_quiet()?;
                return Ok(Some(leader));
            }
            let connection = &self.connection;
            let deadline = self.deadline.take();
            let deadline = deadline.unwrap_or_else(|| connection.deadline());
            let deadline = deadline.plus(self.queue.wait(next));
            let written = self.send(&mut sent, admitted, &mut shown, deadline);
            if let Err(fault) = written {
                return Err(self.gather(sent, fault, deadline));
            }
            let response = self.connection.receive(self.queue.opcode(next), deadline)?;
            if let Err(Error::NotLeader {
                leader: Some(leader),
            }) = &response
                && follow
                && refused.is_none()
            {
                refused = Some((next, leader.clone()));
            }
            self.responses.push((response, self.connection.read_at()));
        }
        if let Some((at, leader)) = refused
            && !self.was_written_since(at)
        {
            self.responses.truncate(at);
            self.connection.expect_quiet()?;
            return Ok(Some(leader));
        }
        self.connection.expect_quiet()?;
        Ok(None)
    }

    /// Admits more requests to the window once half of it is free, so that they are sent in few large writes.
    fn admit(&self, mut admitted: usize) -> usize {
        let next = self.responses.len();
        let answered = self.queue.start(next);
        if self.queue.start(admitted) - answered > WINDOW_LEN / 2 {
            return admitted;
        }
        while admitted < self.queue.len()
            && (admitted == next || self.queue.end(admitted) - answered <= WINDOW_LEN)
        {
            admitted += 1;
        }
        admitted
    }

    /// Sends the admitted requests from `*sent` on, and waits only for the request whose response comes next.
    fn send(
        &mut self,
        sent: &mut usize,
        admitted: usize,
        shown: &mut usize,
        deadline: Deadline,
    ) -> Result<()> {
        let queue = self.queue;
        let limit = queue.start(admitted);
        if *sent < limit {
            *sent += self.connection.write_some(&queue.bytes[*sent..limit])?;
        }
        let first_end = queue.end(self.responses.len());
        let reached = (*sent).max(first_end);
        while *shown < admitted && queue.start(*shown) < reached {
            let frame = &queue.bytes[queue.start(*shown)..queue.end(*shown)];
            self.connection.show(Direction::Sent, frame);
            *shown += 1;
        }
        if *sent < first_end {
            self.connection
                .write_all(&queue.bytes[*sent..first_end], deadline)?;
            *sent = first_end;
        }
        Ok(())
    }

    /// After a failed write: receives the responses that the node sent before, and returns the fault.
    fn gather(&mut self, sent: usize, fault: Error, deadline: Deadline) -> Error {
        if !matches!(fault.innermost(), Error::Connection { .. }) {
            return fault;
        }
        while self.queue.end(self.responses.len()) <= sent {
            let opcode = self.queue.opcode(self.responses.len());
            match self.connection.receive(opcode, deadline) {
                Ok(response) => self.responses.push((response, self.connection.read_at())),
                Err(_) => return fault,
            }
        }
        // There is one more request, whose bytes could not be written.
        let opcode = self.queue.opcode(self.responses.len());
        if let Some(refusal) = self.connection.last_words(opcode, &fault, deadline) {
            let read_at = self.connection.read_at();
            self.responses.push((Err(refusal), read_at));
        }
        fault
    }

    /// Whether a write after the one at `at` was executed, or may have been.
    fn was_written_since(&self, at: usize) -> bool {
        let may_be_done = |response: &Result<Response>| match response {
            Ok(_) => true,
            Err(error) => error.is_outcome_unknown(),
        };
        (at + 1..self.responses.len()).any(|after| {
            self.queue.opcode(after).spec().writes && may_be_done(&self.responses[after].0)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{SocketAddr, TcpListener, TcpStream},
        thread,
        time::Duration,
    };

    use socket2::{Domain, SockRef, Socket, Type};

    use super::*;
    use crate::{
        client::ClientOptions,
        wire::{
            Buffer,
            request::{Limits, Parsed, parse},
        },
    };

    /// A peer that reads nothing while a response of it is not taken, and whose sockets hold next to nothing.
    fn stubborn(mut stream: TcpStream, value: &[u8]) -> usize {
        let mut buffer = Buffer::new();
        let mut count = 0;
        loop {
            while let Ok(Parsed::Whole(frame)) = parse(buffer.bytes(), &Limits::default()) {
                let value = if frame.opcode() == Opcode::Get {
                    value
                } else {
                    &[]
                };
                let mut out = Vec::new();
                let response = crate::wire::Response { status: 0, value };
                assert!(response.encode(&mut out).is_ok());
                let len = frame.bytes().len();
                buffer.consume(len);
                count += 1;
                if stream.write_all(&out).is_err() {
                    return count;
                }
            }
            match stream.read(buffer.space(7)) {
                Ok(0) | Err(_) => return count,
                Ok(read) => buffer.filled(read),
            }
        }
    }

    #[test]
    fn small_socket_buffers_cause_no_deadlock() {
        let Ok(socket) = Socket::new(Domain::IPV4, Type::STREAM, None) else {
            unreachable!("no socket")
        };
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        assert!(socket.set_recv_buffer_size(1).is_ok());
        assert!(socket.set_send_buffer_size(1).is_ok());
        assert!(socket.bind(&any.into()).is_ok() && socket.listen(1).is_ok());
        let listener = TcpListener::from(socket);
        let addr = listener.local_addr().map(|addr| addr.to_string());
        let options = ClientOptions {
            timeout: Duration::from_secs(20),
            ..ClientOptions::default()
        };
        let client = Client::connect_with(&addr.unwrap_or_default(), options);
        let (Ok(mut client), Ok((stream, _))) = (client, listener.accept()) else {
            unreachable!("no connection")
        };
        let Some(home) = &client.home else {
            unreachable!("no connection")
        };
        let small = SockRef::from(home.stream());
        assert!(small.set_send_buffer_size(1).is_ok());
        let node = thread::spawn(move || stubborn(stream, &[b'v'; 50_000]));

        let mut pipeline = client.pipeline();
        for at in 0..2_000_u32 {
            pipeline.get(&at.to_be_bytes());
            if at % 500 == 250 {
                pipeline.set(b"large", &[b'l'; 100_000]);
            }
        }
        let responses = pipeline.run();
        drop(client);
        assert_eq!(node.join().ok(), Some(2_004));
        match responses {
            Ok(responses) => {
                assert_eq!(responses.len(), 2_004);
                assert!(responses.iter().all(Result::is_ok));
            }
            Err(error) => unreachable!("{error}"),
        }
    }
}
