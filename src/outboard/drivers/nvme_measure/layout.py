"""What the measuring loop and Python share: records of 64-bit words, by their offsets.

One `RUN` record for a thread, a `QUEUE` record for each queue pair it drives, and a `SLOT` record, a cache
line, for each command that may be in flight: a slot is a command identifier and a data buffer.
"""

from outboard.native.words import offsets

READ, WRITE = 0x02, 0x01
SUBMISSION_SIZE, COMPLETION_SIZE = 64, 16

(
    STOP,  # not zero: submit nothing more
    DEADLINE,  # submit nothing more from then on, in nanoseconds of the monotonic clock
    RECORD_FROM,  # what completes earlier is warming up
    PATIENCE,  # nanoseconds without a completion after which `drive` returns
    POLLS,  # looks at the queues between two looks at the clock, while nothing completes
    QUEUES,  # address of the first queue record
    QUEUES_END,
    BATCH,  # address of a list of (slot, started) for the completions of one turn
    RANDOM,  # state of the generator, 62 bits
    READ_SHARE,  # of 65536 commands, how many read
    IS_RANDOM,  # 0: one chunk after the other
    CHUNKS,  # how many there are to choose from
    BLOCKS,  # logical blocks of a chunk
    CHUNK_SIZE,  # its bytes
    VERIFY,  # not zero: write a pattern, compare what is read
    SCAN,  # not zero: read every chunk that was written once
    SLOT_COUNT,  # of all queues
    GENERATIONS,  # address of 32 bits a chunk: which write was the last, 0: none, or unknown
    HISTOGRAM,  # address
    ERRORS,  # address of a counter for each status
) = offsets(20)

(
    PRIMED,  # not zero: the first commands were submitted
    NOW,  # the clock after the last turn
    ENDED,  # when submitting ended, 0 until then
    COMPLETED,  # commands that succeeded between RECORD_FROM and ENDED
    FAILED,  # commands that did not, since the start
    FIRST_STATUS,  # of the first that failed: type and code
    FIRST_OPCODE,
    FIRST_LBA,
    BROKEN,  # not zero: a completion came that belongs to no command, for identifier BROKEN - 1
    COMPARED,  # chunks whose data was what was written
    CORRUPT,  # chunks whose data was not
    CORRUPT_WORD,  # of the first: byte offset in the chunk, where it began, what was due, what came
    CORRUPT_LBA,
    CORRUPT_EXPECTED,
    CORRUPT_FOUND,
) = offsets(15, start=256)

RUN_SIZE = 512

(
    HEAD,  # of the completion queue
    PHASE,
    COMPLETIONS,  # address
    ENTRIES,  # of each of both queues
    SLOTS,  # address of the first slot record
    DEPTH,  # how many slots
    TAIL,  # of the submission queue
    SUBMISSIONS,  # address
    IN_FLIGHT,
    BELL_KIND,
    BELL,  # address of the tail's doorbell, or its shadow; the head's is BELL_STRIDE behind
    BELL_STRIDE,
    EVENT,  # address of the tail's event index
    RUNG_TAIL,  # what the doorbells were told last
    RUNG_HEAD,
    HEAD_SLACK,  # completions that may be consumed before a message says so
    OWED,  # which doorbells Python has to ring by message
    NEXT,  # the next chunk, when they are taken in order
) = offsets(18)

QUEUE_SIZE = 192

MAPPED, SHADOW, TRAPPED = 0, 1, 2
"""BELL_KIND."""

OWED_TAIL, OWED_HEAD = 1, 2

(
    STARTED,  # when, in nanoseconds; 0: not in flight; NOT_RUNG: the doorbell has not rung yet
    BASE,  # the first 8 bytes of an entry, without the opcode
    PRP1,
    PRP2,
    LBA,
    OPCODE,
    BUFFER,  # address of the data
    INDEX,  # number among all slots: which chunks are its own when verifying
) = offsets(8)

SLOT_SIZE = 64
NOT_RUNG = 1

STATUSES = 2048
"""Status type (3 bits) and code (8 bits)."""

DONE, RING, IDLE, IS_BROKEN = 0, 1, 2, 3
"""Why `drive` returns."""
