package walrec_test

import (
	"bytes"
	"testing"

	"holdfast/internal/crc32c"
	"holdfast/internal/pg/blockset"
	"holdfast/internal/pg/wal"
	"holdfast/internal/pg/walrec"
)

// Whatever the bytes, records come in order and within bounds, and the segment's sum is that of its records.
func FuzzReader(f *testing.F) {
	for version := range magics { // shortly: fuzzing is slow with long inputs
		w := newWriter(version, mib, 7)
		w.fill(2000)
		w.record(body{rm: 10, main: []byte("rest")})
		w.fill(8)
		w.record(body{rm: 10, main: []byte("longer than what is left")})
		w.fill(8000)
		f.Add(bytes.Clone(w.wal), uint32(len(w.wal)))
	}
	f.Fuzz(func(t *testing.T, b []byte, end uint32) {
		r, err := walrec.NewReader(bytes.NewReader(b), 0)
		if err != nil {
			return
		}
		b = append(b, make([]byte, (pageLen-len(b)%pageLen)%pageLen)...)
		bound := r.Header().Address + wal.LSN(end&^7)
		if r, err = walrec.NewReader(bytes.NewReader(b), bound); err != nil {
			t.Fatal(err)
		}
		var want blockset.Set
		var last wal.LSN
		n := 0
		for {
			rec, err := r.Next()
			if err != nil {
				if _, again := r.Next(); again != err {
					t.Errorf("first %v, then %v", err, again)
				}
				break
			}
			if rec.LSN <= last || n > 0 && rec.Prev != last || rec.End < rec.LSN+24 || rec.Length < 24 || len(rec.Main) > int(rec.MainLen) {
				t.Errorf("after %s: %+v", last, *rec)
			}
			told(rec)
			rec.InPlace()
			if row, ok := rec.NewRow(); ok && row.Same > len(row.Rest) {
				t.Errorf("%+v has a row of %d bytes, of which %d are as before", *rec, len(row.Rest), row.Same)
			}
			if walrec.Effects(rec, r.Version(), &want) != nil {
				return
			}
			last, n = rec.LSN, n+1
		}
		s, err := walrec.SummarizeTo(bytes.NewReader(b), r.Header().SegmentSize, bound)
		if err != nil {
			return
		}
		again, err := walrec.Decode(s.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if d := same(&again.Blocks, &want); d != "" {
			t.Error(d)
		}
		var j walrec.Joiner
		if err := j.Add(again); err == nil && j.Unfinished() != s.HeadLSN {
			t.Errorf("unfinished is %s, want %s", j.Unfinished(), s.HeadLSN)
		}
	})
}

// Whatever a record's bytes, if its CRC is right they are read in one go and in two segments alike.
func FuzzRecord(f *testing.F) {
	for _, line := range []struct {
		rm, info uint8
		body     string
	}{
		{10, 0, "\x00\x30\x05\x00\x08\x00\x64\x00\x03\x7f\x06\x00\x00\x05\x00\x00\x00\x00\x40\x00\x00\x03\x00\x00\x00\xff\x03" + "data.8 bytes...xyz"},
		{1, 0x80, "\xff\x18\x00\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x01\x00\x00\x00\x7f\x06\x00\x00\x05\x00\x00\x00\x07\x00\x00\x00"},
		{2, 0x20, "\xff\x14\x03\x00\x00\x00\x7f\x06\x00\x00\x05\x00\x00\x00\x07\x00\x00\x00\x03\x00\x00\x00"},
		{4, 0x20, "\xff\x0c\x05\x00\x00\x00\x01\x00\x00\x00\x7f\x06\x00\x00"},
		{0, 0x60, "\xff\x18" + string(make([]byte, 24))},
		{0, 0x40, ""},
		{21, 0, "\xfd\x01\x00\xfc\x01\x00\x00\x00\xfe\x02\x00\x00\x00ab"},
	} {
		f.Add(uint8(17), line.rm, line.info, []byte(line.body))
	}
	f.Fuzz(func(t *testing.T, version, rm, info uint8, headers []byte) {
		w := newWriter(10+int(version)%9, mib, 7)
		w.fill(24)
		for uint64(w.lsn()+24)%mib != 0 {
			w.message(8000)
			w.fill(24)
		}
		split := *w
		before := body{rm: rm, info: info, headers: headers}

		// The record as it lies in two segments, and the same one in one.
		split.record(before)
		split.switchWAL()
		j, errJoined := joinAll(split.segments())
		one := newWriter(10+int(version)%9, mib, 7)
		one.message(100)
		one.record(before)
		one.switchWAL()
		whole, err := joinAll(one.segments())
		if rm == walrec.RMXLOG && info&0xF0 == 0x40 && len(headers) > 0 {
			return // a switch that says more than it is one does not leave the segment empty but for itself
		}
		if (err == nil) != (errJoined == nil) {
			t.Fatalf("in one segment %v, in two %v", err, errJoined)
		}
		if err != nil {
			return
		}
		if d := same(&j.Blocks, &whole.Blocks); d != "" || j.Minimal != whole.Minimal {
			t.Errorf("%s; minimal %v and %v", d, j.Minimal, whole.Minimal)
		}
	})
}

// What is taken for a stored summary is stored the same again, and can be joined or refused.
func FuzzDecode(f *testing.F) {
	w := small(14)
	w.message(3 * mib / 2)
	w.switchWAL()
	var all []*walrec.Summary
	for _, b := range w.segments() {
		s, err := walrec.Summarize(bytes.NewReader(b), mib)
		if err != nil {
			f.Fatal(err)
		}
		s.Head.Bytes, s.Tail.Bytes = s.Head.Bytes[:min(len(s.Head.Bytes), 100)], s.Tail.Bytes[:min(len(s.Tail.Bytes), 100)]
		s.Head.Length, s.Tail.Length = uint32(len(s.Head.Bytes)), uint32(len(s.Tail.Bytes))
		all = append(all, s)
		f.Add(withoutSum(s.Encode()))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		// Else next to nothing would have the right checksum.
		s, err := walrec.Decode(withSum(b))
		if err != nil {
			return
		}
		form := s.Encode()
		again, err := walrec.Decode(form)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again.Encode(), form) {
			t.Error("stored in another form")
		}
		if s.All() && (s.First != 0 || s.HeadLSN != 0) || uint64(s.Tail.Length)+uint64(s.Head.Length) > uint64(s.SegmentSize) {
			t.Errorf("accepted %+v", *s)
		}
		for _, order := range [][]*walrec.Summary{{s}, {all[0], s}, {s, all[1]}, {all[0], s, all[1]}} {
			var j walrec.Joiner
			for _, s := range order {
				if j.Add(s) != nil {
					break
				}
			}
		}
	})
}

func withoutSum(b []byte) []byte { return b[:len(b)-4] }

func withSum(b []byte) []byte { return le.AppendUint32(bytes.Clone(b), crc32c.Checksum(b)) }
