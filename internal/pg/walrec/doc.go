// Package walrec decodes the records of PostgreSQL's write-ahead log, versions 10 to 18, and sums up which blocks they change.
//
// The WAL is a sequence of pages, each with a header, and of records that are cut into pieces at the pages' ends
// (src/include/access/xlog_internal.h and xlogrecord.h); all here is little-endian. A record is:
//
//	length  xid  prev  info  resource manager  2 zeros  CRC-32C  headers  data of blocks  main data
//	4       4    8     1     1                          4
//
// Each header announces a block with its image and data, or the main data. The CRC is of all that follows it, then of what
// precedes it.
//
// A Reader checks all of that: every page's header, every record's CRC and length, and its link to the one before. What it accepts
// is what the server wrote; what it does not look at are paddings, and what follows a switch to the next segment.
//
// A Summary is of one segment and can be made when nothing else is at hand; a Joiner makes of the summaries of consecutive segments
// one set of changed blocks.
package walrec
