use std::collections::BTreeMap;
use std::fs;

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::Error;

/// A file with the given header and `data` zero bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(vec![0; data]);
    bytes
}

fn refusal(bytes: impl Into<Vec<u8>>) -> FileError {
    match TensorFile::from_bytes("hostile.safetensors", bytes.into()) {
        Err(Error::TensorFile { name, source }) => {
            assert_eq!(name, "hostile.safetensors");
            source
        }
        Err(other) => panic!("unexpected error {other}"),
        Ok(_) => panic!("the file was accepted"),
    }
}

fn entry(shape: &str, start: u64, end: u64) -> String {
    format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}"#)
}

fn sample() -> (BTreeMap<String, Tensor>, BTreeMap<String, String>) {
    let numbers = Tensor::new(&[[1.5f32, -2.0, 3.25], [0.0, 1e-8, -7.0]], &Device::Cpu).unwrap();
    let mut tensors = BTreeMap::new();
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        tensors.insert(format!("{dtype:?}"), numbers.to_dtype(dtype).unwrap());
    }
    for dtype in [DType::U8, DType::U32, DType::I16, DType::I32, DType::I64] {
        tensors.insert(format!("{dtype:?}"), numbers.abs().unwrap().to_dtype(dtype).unwrap());
    }
    tensors.insert("scalar".into(), Tensor::new(4.0f32, &Device::Cpu).unwrap());
    tensors.insert("empty".into(), Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap());
    tensors.insert("turned".into(), numbers.t().unwrap());
    let metadata = [("z", "last"), ("a", "first \"quoted\" ünïcode\n")];
    (tensors, metadata.map(|(key, value)| (key.to_string(), value.to_string())).into())
}

fn bits(tensor: &Tensor) -> Vec<u64> {
    let wide = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
    wide.to_vec1::<f64>().unwrap().into_iter().map(f64::to_bits).collect()
}

#[test]
fn what_was_written_is_read_back() {
    let (tensors, metadata) = sample();
    let file = TensorFile::from_bytes("sample", to_bytes(&tensors, &metadata).unwrap()).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), tensors.keys().collect::<Vec<_>>());
    assert_eq!(file.metadata(), &metadata);
    for (name, tensor) in &tensors {
        let read = file.tensor(name, &Device::Cpu).unwrap();
        assert_eq!((read.dims(), read.dtype()), (tensor.dims(), tensor.dtype()), "{name}");
        assert_eq!((file.shape(name).unwrap(), file.dtype(name).unwrap()), (tensor.dims(), tensor.dtype()));
        assert_eq!(bits(&read), bits(tensor), "{name}");
    }
}

#[test]
fn the_reference_implementation_reads_our_files() {
    let (tensors, metadata) = sample();
    let bytes = to_bytes(&tensors, &metadata).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["a"], metadata["a"]);
    let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(reference.len(), tensors.len());
    let view = reference.tensor("F32").unwrap();
    assert_eq!((view.shape(), &view.data()[..4]), (&[2, 3][..], &1.5f32.to_le_bytes()[..]));
}

#[test]
fn we_read_files_of_the_reference_implementation() {
    let data: Vec<u8> = [1.0f32, 2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2], &data).unwrap();
    let info = Some([("k".to_string(), "v".to_string())].into());
    let bytes = safetensors::serialize([("x", view)], info).unwrap();
    let file = TensorFile::from_bytes("reference", bytes).unwrap();
    assert_eq!(file.tensor("x", &Device::Cpu).unwrap().to_vec1::<f32>().unwrap(), [1.0, 2.0]);
    assert_eq!(file.metadata()["k"], "v");
}

#[test]
fn equal_content_gives_equal_bytes_and_sorted_metadata() {
    let (tensors, metadata) = sample();
    let bytes = to_bytes(&tensors, &metadata).unwrap();
    for _ in 0..3 {
        assert_eq!(to_bytes(&tensors, &metadata).unwrap(), bytes);
    }
    assert!(bytes[8..].starts_with(br#"{"__metadata__":{"a":"#));
    let data_start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(data_start % 8, 0);
}

#[test]
fn small_and_large_files_are_read_in_pieces() {
    let folder = tempfile::tempdir().unwrap();
    for (name, count) in [("small.safetensors", 10), ("large.safetensors", (20 << 20) / 4)] {
        let path = folder.path().join(name);
        let ramp = Tensor::arange(0u32, count, &Device::Cpu).unwrap();
        write(&path, &[("ramp".to_string(), ramp)].into(), &BTreeMap::new()).unwrap();
        let ramp = TensorFile::open(&path).unwrap().tensor("ramp", &Device::Cpu).unwrap();
        assert_eq!(ramp.dims(), [count as usize]);
        let expected: Vec<u32> = (0..count).collect();
        assert!(ramp.to_vec1::<u32>().unwrap() == expected, "{name}");
    }
}

#[test]
fn paths_that_are_no_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = TensorFile::open(folder.path().join("missing")).unwrap_err();
    assert!(missing.to_string().contains("missing") && missing.hint().is_some());
    assert!(matches!(missing, Error::TensorFile { source: FileError::Io(_), .. }));
    let directory = TensorFile::open(folder.path()).unwrap_err();
    assert!(matches!(directory, Error::TensorFile { source: FileError::NotAFile, .. }));
    let empty = folder.path().join("empty");
    fs::OpenOptions::new().write(true).create_new(true).open(&empty).unwrap();
    assert!(matches!(TensorFile::open(empty), Err(Error::TensorFile { source: FileError::Empty, .. })));
}

#[test]
fn a_file_of_no_bytes_is_empty() {
    assert!(matches!(refusal([]), FileError::Empty));
}

#[test]
fn pickle_checkpoints_are_recognised_and_the_way_out_is_named() {
    for magic in [&b"PK\x03\x04archive/data.pkl........"[..], b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j", b"\x80\x04\x95\x00"]
    {
        let error = refusal(magic);
        assert!(matches!(error, FileError::Pickle), "{error}");
        assert!(error.hint().unwrap().contains("convert"));
    }
}

#[test]
fn a_header_whose_length_looks_like_a_pickle_is_still_read() {
    // 640 = 0x0280: the file begins with the bytes of a protocol-2 pickle.
    let mut header = format!(r#"{{"x":{}}}"#, entry("[1]", 0, 4));
    header.push_str(&" ".repeat(640 - header.len()));
    assert!(TensorFile::from_bytes("x", file(&header, 4)).is_ok());
}

#[test]
fn git_lfs_pointers_are_recognised() {
    let error = refusal("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n");
    assert!(matches!(error, FileError::LfsPointer));
}

#[test]
fn other_files_are_not_safetensors() {
    for bytes in [&b"<!DOCTYPE html><html>Not found</html>"[..], b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"] {
        assert!(matches!(refusal(bytes), FileError::NotSafetensors { .. }));
    }
    assert!(matches!(refusal(file("{not json}", 0)), FileError::NotSafetensors { .. }));
    assert!(matches!(refusal(file("{}", 0)[..9].to_vec()), FileError::Truncated { .. }));
}

#[test]
fn cut_files_are_truncated_wherever_they_are_cut() {
    let whole = file(&format!(r#"{{"x":{}}}"#, entry("[2]", 0, 8)), 8);
    for length in 1..whole.len() {
        let error = refusal(&whole[..length]);
        assert!(matches!(error, FileError::Truncated { .. }), "{length} bytes: {error}");
    }
    assert!(TensorFile::from_bytes("x", whole).is_ok());
}

#[test]
fn bytes_after_the_end_are_refused() {
    let bytes = file(&format!(r#"{{"x":{}}}"#, entry("[2]", 0, 8)), 9);
    assert!(matches!(refusal(bytes), FileError::TrailingBytes { .. }));
}

#[test]
fn huge_headers_are_refused_without_being_read() {
    for length in [16_777_217u64, u64::MAX] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.push(b'{');
        assert!(matches!(refusal(bytes), FileError::HeaderTooLarge { bytes } if bytes == length));
    }
}

#[test]
fn files_that_shrink_while_they_are_read_are_cut_short() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shrinking.safetensors");
    let zeros = |count| Tensor::zeros(count, DType::F32, &Device::Cpu).unwrap();
    let tensors = [("a".to_string(), zeros(1 << 20)), ("b".to_string(), zeros(10 << 20))].into();
    write(&path, &tensors, &BTreeMap::new()).unwrap();
    let file = TensorFile::open(&path).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8 << 20).unwrap();
    assert_eq!(file.tensor("a", &Device::Cpu).unwrap().dims(), [1 << 20]);
    let hashed = file.each_data_chunk(|_| {}).map(|()| zeros(1));
    for read in [file.tensor("b", &Device::Cpu), file.tensor_f32("b"), hashed] {
        let error = read.unwrap_err();
        let Error::TensorFile { source: FileError::Truncated { expected, found }, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!((*expected, *found), (file.byte_count(), 8 << 20));
    }
}

#[test]
fn every_float_type_is_converted_on_the_way() {
    let (tensors, metadata) = sample();
    let file = TensorFile::from_bytes("sample", to_bytes(&tensors, &metadata).unwrap()).unwrap();
    for name in ["F32", "F64", "F16", "BF16", "scalar", "empty", "turned"] {
        let expected = tensors[name].to_dtype(DType::F32).unwrap();
        let found = file.tensor_f32(name).unwrap();
        assert_eq!((found.dims(), bits(&found)), (expected.dims(), bits(&expected)), "{name}");
    }
    assert_eq!(file.values("F16", 1..4).unwrap(), [-2.0, 3.25, 0.0]);
    assert!(matches!(file.tensor_f32("U32"), Err(Error::TensorFile { source: FileError::Unsupported { .. }, .. })));
}

#[test]
fn keys_may_occur_once_at_every_level() {
    let x = entry("[1]", 0, 4);
    let twice = [
        format!(r#"{{"x":{x},"x":{x}}}"#),
        format!(r#"{{"__metadata__":{{}},"x":{x},"__metadata__":{{}}}}"#),
        format!(r#"{{"__metadata__":{{"x":"1","x":"2"}},"y":{x}}}"#),
        r#"{"y":{"dtype":"F32","x":1,"shape":[1],"data_offsets":[0,4],"x":2}}"#.into(),
        r#"{"y":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"z":[{"x":{},"x":[]}]}}"#.into(),
    ];
    for header in twice {
        let error = refusal(file(&header, 4));
        let FileError::DuplicateKey { key } = &error else { panic!("{header}: {error}") };
        assert!(["x", "__metadata__"].contains(&key.as_str()));
        assert!(error.hint().unwrap().contains("do not trust"));
    }
    let header = r#"{"x":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    assert!(matches!(refusal(file(header, 4)), FileError::DuplicateKey { key } if key == "dtype"));
}

#[test]
fn headers_with_more_than_any_model_has_are_refused() {
    let pairs: Vec<String> = (0..100_001).map(|number| format!(r#""{number}":"""#)).collect();
    let header = format!(r#"{{"__metadata__":{{{}}}}}"#, pairs.join(","));
    assert!(matches!(refusal(file(&header, 0)), FileError::TooManyKeys { .. }));
    let tensors: Vec<String> = (0..100_001).map(|number| format!(r#""{number}":{}"#, entry("[0]", 0, 0))).collect();
    assert!(matches!(refusal(file(&format!("{{{}}}", tensors.join(",")), 0)), FileError::TooManyKeys { .. }));
    let long = format!(r#"{{"x":{}}}"#, entry(&format!("[{}1]", "1,".repeat(40)), 0, 4));
    assert!(matches!(refusal(file(&long, 4)), FileError::Description { .. }));
    let deep = format!(r#"{{"x":{}1{}}}"#, "[".repeat(1000), "]".repeat(1000));
    assert!(matches!(refusal(file(&deep, 0)), FileError::NotSafetensors { .. }));
}

#[test]
fn overlapping_tensors_are_refused() {
    let header = format!(r#"{{"a":{},"b":{}}}"#, entry("[2]", 0, 8), entry("[2]", 4, 12));
    let error = refusal(file(&header, 12));
    assert!(matches!(&error, FileError::Overlap { first, second } if first == "a" && second == "b"), "{error}");
    let header = format!(r#"{{"a":{},"b":{}}}"#, entry("[2]", 0, 8), entry("[2]", 0, 8));
    assert!(matches!(refusal(file(&header, 8)), FileError::Overlap { .. }));
}

#[test]
fn bytes_between_tensors_are_refused() {
    let header = format!(r#"{{"a":{},"b":{}}}"#, entry("[1]", 0, 4), entry("[1]", 8, 12));
    assert!(matches!(refusal(file(&header, 12)), FileError::Gap { tensor, bytes: 4 } if tensor == "b"));
}

#[test]
fn absurd_shapes_are_refused_without_allocating() {
    for shape in ["[1152921504606846976,1152921504606846976]", "[9223372036854775807]", "[4294967296,4294967296,0,2]"] {
        let error = refusal(file(&format!(r#"{{"x":{}}}"#, entry(shape, 0, 4)), 4));
        assert!(matches!(error, FileError::AbsurdShape { .. }), "{error}");
    }
    let error = refusal(file(&format!(r#"{{"x":{}}}"#, entry("[1099511627776]", 0, 4)), 4));
    assert!(matches!(error, FileError::WrongSize { .. }), "{error}");
}

#[test]
fn sizes_that_contradict_the_shape_are_refused() {
    let error = refusal(file(&format!(r#"{{"x":{}}}"#, entry("[3]", 0, 8)), 8));
    assert!(matches!(error, FileError::WrongSize { expected: 12, found: 8, .. }), "{error}");
}

#[test]
fn malformed_descriptions_name_the_tensor() {
    let broken = [
        r#"{"x":{"shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"x":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
        r#"{"x":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}}"#,
        r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0]}}"#,
        r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
        r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[18446744073709551611,18446744073709551615]}}"#,
        r#"{"x":7}"#,
    ];
    for header in broken {
        let error = refusal(file(header, 4));
        assert!(matches!(&error, FileError::Description { tensor, .. } if tensor == "x"), "{header}: {error}");
    }
}

#[test]
fn metadata_that_is_not_text_is_refused() {
    for header in [r#"{"__metadata__":{"k":1}}"#, r#"{"__metadata__":["k"]}"#] {
        assert!(matches!(refusal(file(header, 0)), FileError::Metadata { .. }));
    }
}

#[test]
fn missing_and_unsupported_tensors_are_named_when_asked_for() {
    let header = r#"{"x":{"dtype":"U64","shape":[1],"data_offsets":[0,8]}}"#;
    let file = TensorFile::from_bytes("odd", file(header, 8)).unwrap();
    assert_eq!(file.shape("x").unwrap(), [1]);
    let unsupported = file.tensor("x", &Device::Cpu).unwrap_err();
    assert!(matches!(unsupported, Error::TensorFile { source: FileError::Unsupported { element: "U64", .. }, .. }));
    let missing = file.tensor("y", &Device::Cpu).unwrap_err();
    assert!(matches!(missing, Error::TensorFile { source: FileError::NoSuchTensor { tensor }, .. } if tensor == "y"));
}

#[test]
fn element_types_without_a_name_in_files_are_refused_on_writing() {
    let tensor = Tensor::new(&[1.0f32], &Device::Cpu).unwrap().to_dtype(DType::F8E4M3).unwrap();
    let error = to_bytes(&[("x".to_string(), tensor)].into(), &BTreeMap::new()).unwrap_err();
    assert!(matches!(error, Error::UnsupportedElement { tensor, .. } if tensor == "x"));
}
