//! What goroutines serve, and what they call for. Pure.

use super::{ConnectionFacts, Exchanges, Finished};
use crate::{
    connection::Origin,
    context::{Evidence, Stitcher, stitch::NodeKey},
    protocol::ExchangeNumber,
    span::Kind,
};

impl Exchanges {
    /// Whoever completes a request's head serves it.
    pub(super) fn note_server_goroutine(
        &mut self,
        connection: &ConnectionFacts,
        exchange: ExchangeNumber,
        origin: Option<Origin>,
    ) {
        if let Some(origin) = origin.filter(|_| connection.kind == Kind::Server)
            && let Some(task) = origin.task
            && let Some(open) = self.open.get(&(connection.id, exchange))
        {
            let (process, node, read_ns) = (origin.unit.process, open.node, origin.time_ns);
            let goroutines = &mut self.goroutines;
            match open.stream.filter(|_| connection.multiplexed) {
                Some(stream) => {
                    let head = (stream, node);
                    goroutines.handle_stream(process, task, connection.id, head, read_ns);
                }
                None => goroutines.handle_request(process, task, connection.id, node, read_ns),
            }
        }
    }

    pub(super) fn goroutine_caller(
        &mut self,
        connection: &ConnectionFacts,
        origin: &Origin,
        stitcher: &Stitcher<Finished>,
    ) -> Option<(NodeKey, Evidence)> {
        let process = origin.unit.process;
        self.goroutines
            .caller(
                process,
                origin.task?,
                origin.descriptor,
                connection.opened_ns,
                origin.time_ns,
            )
            .filter(|caller| stitcher.is_open(*caller))
            .map(|caller| (caller, Evidence::Goroutine))
    }

    pub(super) fn stream_caller(
        &mut self,
        origin: &Origin,
        stream: Option<u32>,
        stitcher: &Stitcher<Finished>,
    ) -> Option<(NodeKey, Evidence)> {
        let process = origin.unit.process;
        self.goroutines
            .stream_caller(process, origin.task?, stream?, origin.time_ns)
            .filter(|caller| stitcher.is_open(*caller))
            .map(|caller| (caller, Evidence::Goroutine))
    }
}
