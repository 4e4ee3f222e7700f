//! The two halves of a flow on a lane.
//!
//! Owns: nothing beside the handle. Must not know: sockets. Driven by: `carrier`, in the manner of QUIC's streams.

use bytes::Bytes;
use quinn::{
    ConnectionError, ReadError, ReadExactError, ReadToEndError, ResetError, StoppedError, StreamId, VarInt,
    WriteError,
};

use gossamer_wire::NodeId;

use super::Lane;
use super::frame::MAX_DATA;
use super::table::{End, Table};
use crate::transport::carrier::Ended;

/// Towards the peer. Dropped without an end it ends cleanly, as QUIC's does.
#[derive(Debug)]
pub struct LaneSend {
    lane: Lane,
    flow: u32,
}

/// From the peer. Dropped before the end it tells the peer that no more is wanted.
#[derive(Debug)]
pub struct LaneRecv {
    lane: Lane,
}

impl LaneSend {
    pub(super) const fn new(lane: Lane, flow: u32) -> Self {
        Self { lane, flow }
    }

    pub(in crate::transport) async fn write(&mut self, mut bytes: Bytes) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let mut piece = Some(bytes.split_to(bytes.len().min(MAX_DATA)));
            let written = |table: &mut Table| {
                if let Some(why) = &table.ended {
                    return Some(Err(WriteError::ConnectionLost(why.clone())));
                }
                if let Some(code) = table.got_stop {
                    return Some(Err(WriteError::Stopped(code)));
                }
                if table.has_sent_end() {
                    return Some(Err(WriteError::ClosedStream));
                }
                match table.write(piece.take()?) {
                    Ok(()) => Some(Ok(())),
                    Err(back) => {
                        piece = Some(back);
                        None
                    }
                }
            };
            self.lane.0.wait(written).await?;
            self.lane.0.changed.send_replace(());
        }
        Ok(())
    }

    pub(in crate::transport) fn finish(&mut self) -> Result<(), Ended> {
        self.lane.0.with(|table| table.end(End::Clean)).then_some(()).ok_or(Ended)
    }

    pub(in crate::transport) fn reset(&mut self, code: VarInt) -> Result<(), Ended> {
        self.lane.0.with(|table| table.end(End::Reset(code))).then_some(()).ok_or(Ended)
    }

    pub(in crate::transport) async fn stopped(&self) -> Result<Option<VarInt>, StoppedError> {
        let stopped = |table: &mut Table| {
            if let Some(code) = table.got_stop {
                return Some(Ok(Some(code)));
            }
            if table.is_delivered() {
                return Some(Ok(None));
            }
            table.ended.clone().map(|why| Err(StoppedError::ConnectionLost(why)))
        };
        self.lane.0.wait(stopped).await
    }

    pub(in crate::transport) fn via(&self) -> Option<NodeId> {
        self.lane.via()
    }

    pub(in crate::transport) fn id(&self) -> StreamId {
        VarInt::from_u32(self.flow).into()
    }
}

impl Drop for LaneSend {
    fn drop(&mut self) {
        self.lane.0.with(Table::drop_send);
    }
}

/// What came of a flow.
fn next(table: &mut Table, most: usize) -> Option<Result<Option<Bytes>, ReadError>> {
    if let Some(bytes) = table.read(most) {
        return Some(Ok(Some(bytes)));
    }
    match table.got_end {
        Some(End::Clean) => Some(Ok(None)),
        Some(End::Reset(code)) => Some(Err(ReadError::Reset(code))),
        None => table.ended.clone().map(|why| Err(ReadError::ConnectionLost(why))),
    }
}

impl LaneRecv {
    pub(super) const fn new(lane: Lane) -> Self {
        Self { lane }
    }

    pub(in crate::transport) async fn readable(&mut self) {
        let readable = |table: &mut Table| {
            (table.unread > 0 || table.got_end.is_some() || table.ended.is_some()).then_some(())
        };
        self.lane.0.wait(readable).await;
    }

    pub(in crate::transport) async fn read_chunk(&mut self, most: usize) -> Result<Option<Bytes>, ReadError> {
        let read = self.lane.0.wait(|table| next(table, most)).await;
        // The task waits for room.
        self.lane.0.changed.send_replace(());
        read
    }

    pub(in crate::transport) async fn read_chunks(
        &mut self,
        pieces: &mut [Bytes],
    ) -> Result<Option<usize>, ReadError> {
        let [first, rest @ ..] = pieces else { return Ok(Some(0)) };
        let Some(bytes) = self.read_chunk(usize::MAX).await? else { return Ok(None) };
        *first = bytes;
        let more = self.lane.0.with(|table| {
            rest.iter_mut().map_while(|place| table.read(usize::MAX).map(|bytes| *place = bytes)).count()
        });
        Ok(Some(1 + more))
    }

    pub(in crate::transport) async fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), ReadExactError> {
        let mut filled = 0;
        while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
            let chunk = self.read_chunk(room.len()).await.map_err(ReadExactError::ReadError)?;
            let chunk = chunk.ok_or(ReadExactError::FinishedEarly(filled))?;
            if let Some(place) = room.get_mut(..chunk.len()) {
                place.copy_from_slice(&chunk);
            }
            filled += chunk.len();
        }
        Ok(())
    }

    pub(in crate::transport) async fn read_to_end(&mut self, most: usize) -> Result<Vec<u8>, ReadToEndError> {
        let mut all = Vec::new();
        while let Some(chunk) = self.read_chunk(usize::MAX).await.map_err(ReadToEndError::Read)? {
            if all.len() + chunk.len() > most {
                return Err(ReadToEndError::TooLong);
            }
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }

    pub(in crate::transport) async fn received_reset(&mut self) -> Result<Option<VarInt>, ResetError> {
        let reset = |table: &mut Table| match table.got_end {
            Some(End::Reset(code)) => Some(Ok(Some(code))),
            Some(End::Clean) if table.unread == 0 => Some(Ok(None)),
            Some(End::Clean) => None,
            None => table.ended.clone().map(|why: ConnectionError| Err(ResetError::ConnectionLost(why))),
        };
        self.lane.0.wait(reset).await
    }

    pub(in crate::transport) fn stop(&mut self, code: VarInt) -> Result<(), Ended> {
        self.lane.0.with(|table| table.stop(code)).then_some(()).ok_or(Ended)
    }
}

impl Drop for LaneRecv {
    fn drop(&mut self) {
        self.lane.0.with(Table::drop_recv);
    }
}
