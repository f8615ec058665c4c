package bridge

import "github.com/pcrm-project/pcrm/pcrm/prefix"

// PrefixArrange calls prefix.Plan.Arrange on rows of width int64 tokens. It writes the shape of
// the packed batch to the two int64 of shape. order, shared and start have rows int64 each.
func PrefixArrange(rows, width int64, shape, order, shared, start, ids, lengths uintptr, minShared, budget int64) (ok bool, err error) {
	defer convert(&err)
	p := prefix.Plan{Order: slice[int64](order, rows), Shared: slice[int64](shared, rows), Start: slice[int64](start, rows)}
	err = p.Arrange(slice[int64](ids, rows*width), int(width), slice[int64](lengths, rows),
		prefix.Options{MinShared: int(minShared), Budget: int(budget)})
	if err == nil {
		out := slice[int64](shape, 2)
		out[0], out[1] = int64(p.Rows), int64(p.Width)
	}
	return err == nil, err
}

// PrefixPack calls prefix.Plan.Pack for a plan of PrefixArrange. packed, positions and ends have
// packedRows*packedWidth int64 each, and gather has rows*width.
func PrefixPack(rows, width, packedRows, packedWidth int64, packed, positions, ends, gather, order, shared, start, ids, lengths uintptr) (ok bool, err error) {
	defer convert(&err)
	p := prefix.Plan{
		Rows: int(packedRows), Width: int(packedWidth),
		Order: slice[int64](order, rows), Shared: slice[int64](shared, rows), Start: slice[int64](start, rows),
	}
	size := packedRows * packedWidth
	err = p.Pack(slice[int64](packed, size), slice[int64](positions, size), slice[int64](ends, size), slice[int64](gather, rows*width),
		slice[int64](ids, rows*width), int(width), slice[int64](lengths, rows))
	return err == nil, err
}
