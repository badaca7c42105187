//! How a member ends its own membership: it asks an admin, and is answered when that is durable. Whose membership it is
//! follows from the certificate of whoever asks; the request names nobody.
//!
//! One question, one answer, over a connection of its own: all others with the member end together with its membership,
//! and it could not tell the answer from a failure. Who lost the answer asks again.
//!
//! ```text
//!   request: version (2)
//!   answer:  0, reason (1)   or   1
//! ```

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::frame::{FrameError, FrameReader, FrameWriter};
use super::identity::NodeId;
use super::network::{NetEvent, Shared};
use super::wire::{Malformed, Reader};

const VERSION: u16 = 1;

/// The largest message of this conversation, in bytes. A later version may say more.
const MAX_MESSAGE_BYTES: usize = 1 << 10;

/// How long asking one admin at one address may take. It writes to its disk before it answers.
pub(super) const ASK_TIMEOUT: Duration = Duration::from_secs(20);

/// Why an admin does not end a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaveRefusal {
    /// The node that was asked is no admin, or not any more.
    #[error("it is no admin")]
    NotAdmin,
    /// The node that was asked is about to leave as well: one of the two has to stay, or nobody might be left who can
    /// change the cluster.
    #[error("it is leaving the cluster, too")]
    Leaving,
    /// Another member's membership was ended just now, and whoever asks may have counted on what that one has.
    #[error("another member is just leaving: try again in half a minute")]
    AnotherLeaves,
    /// The request could not be understood.
    #[error("it did not understand the request: use the same version of consort on both machines")]
    Malformed,
    /// The admin could not record the end of the membership.
    #[error("it cannot record that now: look at its log")]
    Failed,
}

impl LeaveRefusal {
    const ALL: [Self; 5] =
        [Self::NotAdmin, Self::Leaving, Self::Malformed, Self::Failed, Self::AnotherLeaves];

    fn code(self) -> u8 {
        match self {
            Self::NotAdmin => 1,
            Self::Leaving => 2,
            Self::Malformed => 3,
            Self::Failed => 4,
            Self::AnotherLeaves => 5,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }
}

/// What became of a request to end a membership.
pub type LeaveAnswer = Result<(), LeaveRefusal>;

/// Answers a member that wants to leave. An error is the connection's.
pub(super) async fn serve(
    shared: &Shared,
    stream: impl AsyncRead + AsyncWrite,
    peer: NodeId,
) -> Result<(), FrameError> {
    let (read, write) = tokio::io::split(stream);
    let mut reader = FrameReader::new(Box::pin(read), MAX_MESSAGE_BYTES);
    let mut writer = FrameWriter::new(Box::pin(write), MAX_MESSAGE_BYTES);
    let Some(request) = reader.read().await? else { return Ok(()) };
    let answer = match decode_request(&request) {
        Err(Malformed) => Err(LeaveRefusal::Malformed),
        Ok(()) => {
            let (reply, answer) = oneshot::channel();
            // A node that is stopping drops the reply.
            let _ = shared.report(NetEvent::Leaves { peer, reply }).await;
            answer.await.unwrap_or(Err(LeaveRefusal::Failed))
        }
    };
    writer.write(&encode_answer(answer)).await?;
    writer.shutdown().await?;
    Ok(())
}

/// Asks at the other end of `stream` for the end of the own membership.
pub(super) async fn ask(stream: impl AsyncRead + AsyncWrite) -> Result<LeaveAnswer, FrameError> {
    let (read, write) = tokio::io::split(stream);
    let mut writer = FrameWriter::new(Box::pin(write), MAX_MESSAGE_BYTES);
    writer.write(&VERSION.to_le_bytes()).await?;
    writer.flush().await?;
    let mut reader = FrameReader::new(Box::pin(read), MAX_MESSAGE_BYTES);
    let answer = reader.read().await?.ok_or(FrameError::Truncated)?;
    Ok(decode_answer(&answer).unwrap_or(Err(LeaveRefusal::Malformed)))
}

fn decode_request(bytes: &[u8]) -> Result<(), Malformed> {
    let mut reader = Reader::new(bytes);
    if reader.u16()? != VERSION {
        return Err(Malformed);
    }
    reader.end()
}

fn encode_answer(answer: LeaveAnswer) -> Vec<u8> {
    match answer {
        Err(refusal) => vec![0, refusal.code()],
        Ok(()) => vec![1],
    }
}

fn decode_answer(bytes: &[u8]) -> Result<LeaveAnswer, Malformed> {
    let mut reader = Reader::new(bytes);
    let answer = match reader.u8()? {
        0 => Err(LeaveRefusal::from_code(reader.u8()?).ok_or(Malformed)?),
        1 => Ok(()),
        _ => return Err(Malformed),
    };
    reader.end()?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_survive_the_wire_and_nothing_else_is_one() {
        for answer in LeaveRefusal::ALL.map(Err).into_iter().chain([Ok(())]) {
            assert_eq!(decode_answer(&encode_answer(answer)), Ok(answer));
        }
        for wrong in [&[][..], &[0], &[0, 0], &[0, 99], &[1, 0], &[2]] {
            assert_eq!(decode_answer(wrong), Err(Malformed), "{wrong:?}");
        }
        assert_eq!(decode_request(&VERSION.to_le_bytes()), Ok(()));
        for wrong in [&[][..], &[1], &[2, 0], &[1, 0, 0]] {
            assert_eq!(decode_request(wrong), Err(Malformed), "{wrong:?}");
        }
    }
}
