//! The packages that hold names and drawings: pinned, fetched by the user's own `npm`, checked, read as data.
//!
//! `npm pack` only downloads a package's archive; nothing in it is installed or run.

use crate::{Error, Result};
use sha2::{Digest, Sha512};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One version of a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name in the registry of npm.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// SHA-512 of the archive that `npm pack` brings, in hexadecimal.
    pub sha512: &'static str,
}

/// Names and keywords of all emoji.
pub const NAMES: Package = Package {
    name: "emojibase-data",
    version: "17.0.0",
    sha512: "62f81be405a81d588757f82ad6aaf96406ab7018a9f81dbbfd92d1b142646e000468b959fdfa1ff60f3cd8b4e9984a728413440b49b6484988b658c7b13ca08c",
};

/// Names and keywords of emoji and of other symbols in some 100 languages: Unicode's own.
pub const ANNOTATIONS: Package = Package {
    name: "cldr-annotations-full",
    version: "48.2.0",
    sha512: "0d5ec0fab11c81448d4d1b1518d1aa05946602419fc211873b9435751c3306806756b1d6a7cd3824feff40974473aea21e6c77fb32d654830214b9b4956ecf51",
};

/// Names that Unicode derives from others: of flags, currencies, families, variants.
pub const DERIVED_ANNOTATIONS: Package = Package {
    name: "cldr-annotations-derived-full",
    version: "48.2.0",
    sha512: "96883ada49be00ecc8ee7fcd12e34d155d2683d0d69edebb1180a1d51c3166af5dc91bb2b5e079f3a2d3f3729ef1372111f9f023d7089363f7d733b89d3bd99b",
};

/// The drawings, a package for each style. The style's name is the last part of the package's.
pub const STYLES: [Package; 7] = [
    Package {
        name: "@iconify-json/noto",
        version: "1.2.9",
        sha512: "0d08ae5c435bba7e35721f973d2579e47f456962a91d3cb3e3a6082ad49a2980f87c80c3ccbd6d47a1f89e9fd3dfc8dfad301e237adc285d26a8761e65502e6b",
    },
    Package {
        name: "@iconify-json/twemoji",
        version: "1.2.5",
        sha512: "b8aa6e204574bfa2b9056dcc8ddca5f972855406db70fc408227cabc432d668519079f98898e7368c9b6b8d342c725f301653dc8d2e58f8d5653afe6be000bb3",
    },
    Package {
        name: "@iconify-json/fluent-emoji",
        version: "1.2.7",
        sha512: "0fc1ba6ca03222ccb13f5af366d216aff820fdf3b8460d7e0f209695fa8a2b887c5bee049bf6343fa4188095104e551c6a0cc9bd2ca0fbd381bf8873e0773f40",
    },
    Package {
        name: "@iconify-json/fluent-emoji-flat",
        version: "1.2.6",
        sha512: "458e3b4603dbe3b7d8522cab03ae2c20e2f4f94534dacdbdb17a4d05b2104415253e57cd1532949990c4446bb10ecffbc8d196a9062fb9a4983353387d15e553",
    },
    Package {
        name: "@iconify-json/noto-v1",
        version: "1.2.5",
        sha512: "fc3b15322bacebd4347d14b9df3ed02b54d1392b9aafad3a8e2231fa5697b5db1818c5e97fa2ed1c1c7a0867e8a375071dbfd7a41b30fb52f5c777b23ea32e54",
    },
    Package {
        name: "@iconify-json/emojione",
        version: "1.2.3",
        sha512: "4fdf93dc721b24d2ca2ac9b160a95a621be71d8933fc73584d5ed21c25d564f7de522e05aac918ef461e37cc980194fc702bfbc39bc9c52e10d66f336fd08c32",
    },
    Package {
        name: "@iconify-json/fxemoji",
        version: "1.2.2",
        sha512: "5006ac45ac7315429f2064a62f09e86abb2cb00e0b5f454b2ee126a6522a33a64d42a21046d6aff2d6781f59de4e506b797b8c4320227ebe633f8927efc0e989",
    },
];

/// Larger archives are not what is expected.
const MAX_ARCHIVE_BYTES: u64 = 64 << 20;
/// The largest file that is read has 104 MB.
const MAX_MEMBER_BYTES: u64 = 256 << 20;
/// All that an archive may unpack to.
const MAX_UNPACKED_BYTES: u64 = 512 << 20;
const ALTERNATIVE: &str =
    "give a folder that holds the packages' .tgz files, as `npm pack` brings them, with --from DIR";

impl Package {
    /// The last part of the name: of a package of drawings its style.
    pub fn short_name(&self) -> &'static str {
        self.name.rsplit('/').next().unwrap_or(self.name)
    }

    /// `name@version`.
    pub fn pinned(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    /// The file name that `npm pack` gives the archive.
    pub fn file_name(&self) -> String {
        format!("{}-{}.tgz", self.name.trim_start_matches('@').replace('/', "-"), self.version)
    }
}

/// Where packages are kept.
#[derive(Clone, Debug)]
pub enum Packages {
    /// A folder in which missing packages are put by `npm`.
    Cache(PathBuf),
    /// A folder of the user's, with `.tgz` files or unpacked packages.
    Folder(PathBuf),
}

/// A package that is there.
pub(in crate::data) enum Opened {
    /// An archive whose digest is right.
    Archive(PathBuf, Vec<u8>),
    /// An unpacked package of the right version.
    Folder(PathBuf),
}

impl Packages {
    /// Opens a package, and fetches it first if that is allowed and needed.
    ///
    /// # Errors
    /// Not there, no `npm`, no network, another content than pinned.
    pub(in crate::data) fn open(&self, package: &Package) -> Result<Opened> {
        match self {
            Self::Cache(cache) => {
                let path = cache.join(package.file_name());
                if !path.is_file() {
                    fetch(&["npm"], package, cache)?;
                }
                read_archive(&path, package, "remove the file; it is fetched again when needed")
            }
            Self::Folder(folder) => {
                let archive = folder.join(package.file_name());
                if archive.is_file() {
                    return read_archive(&archive, package, "fetch it again with `npm pack`");
                }
                let stem = package.file_name().trim_end_matches(".tgz").to_owned();
                let places = [
                    folder.join(&stem).join("package"),
                    folder.join(stem),
                    folder.join(package.name),
                    folder.join("node_modules").join(package.name),
                ];
                let found = places.into_iter().find(|place| place.join("package.json").is_file());
                let found = found.ok_or_else(|| {
                    Error::file(folder, format!("holds neither {} nor that package unpacked", package.file_name()))
                        .with_help(format!("run `npm pack {}` in that folder", package.pinned()))
                })?;
                check_version(&found, package)?;
                Ok(Opened::Folder(found))
            }
        }
    }
}

impl Opened {
    /// Whether the content is known to be the pinned one.
    pub(in crate::data) fn verified(&self) -> bool {
        matches!(self, Self::Archive(..))
    }

    /// The content of these files of the package; those that it lacks are absent.
    ///
    /// # Errors
    /// Damaged, or larger than any such file is.
    pub(in crate::data) fn read(&self, members: &[String]) -> Result<BTreeMap<String, Vec<u8>>> {
        match self {
            Self::Archive(path, bytes) => unpack(bytes, members)
                .map_err(|m| Error::file(path, m).with_help("the archive is damaged; fetch it again with `npm pack`")),
            Self::Folder(folder) => {
                let mut found = BTreeMap::new();
                for member in members {
                    let path = folder.join(member);
                    match bounded(&path, MAX_MEMBER_BYTES) {
                        Ok(bytes) => found.insert(member.clone(), bytes),
                        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => continue,
                        Err(e) => return Err(e),
                    };
                }
                Ok(found)
            }
        }
    }

    /// What errors about the content name.
    pub(in crate::data) fn path(&self) -> &Path {
        match self {
            Self::Archive(path, _) | Self::Folder(path) => path,
        }
    }
}

fn fetch(command: &[&str], package: &Package, cache: &Path) -> Result<()> {
    std::fs::create_dir_all(cache).map_err(|e| Error::io(cache, e))?;
    let temporary = tempfile::tempdir_in(cache).map_err(|e| Error::io(cache, e))?;
    let [program, arguments @ ..] = command else { return Err(Error::failure("no program to fetch packages with")) };
    let result = Command::new(program)
        .args(arguments)
        .args(["pack", &package.pinned(), "--ignore-scripts", "--loglevel=error", "--pack-destination"])
        .arg(temporary.path())
        .stdin(Stdio::null())
        .output();
    let output = result.map_err(|e| match e.kind() {
        ErrorKind::NotFound => {
            Error::failure(format!("{} is needed, and npm, which would fetch it, is not installed", package.pinned()))
                .with_help(format!("install Node.js with npm, or {ALTERNATIVE}"))
        }
        _ => Error::io(program, e),
    })?;
    let fetched = temporary.path().join(package.file_name());
    if !output.status.success() || !fetched.is_file() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let reason = said.lines().map(str::trim).find(|line| line.contains("npm error") && !line.ends_with("error"));
        let reason =
            reason.or_else(|| said.lines().rev().find(|l| !l.trim().is_empty())).unwrap_or("it gave no reason");
        return Err(Error::failure(format!("npm could not fetch {}: {reason}", package.pinned()))
            .with_help(format!("check the network and npm's settings, or {ALTERNATIVE}")));
    }
    let help = format!("do not use it; check where npm gets its packages, or {ALTERNATIVE}");
    read_archive(&fetched, package, &help)?;
    let kept = cache.join(package.file_name());
    std::fs::rename(&fetched, &kept).map_err(|e| Error::io(&kept, e))
}

fn read_archive(path: &Path, package: &Package, help: &str) -> Result<Opened> {
    let bytes = bounded(path, MAX_ARCHIVE_BYTES)?;
    let found = crate::digest::hex(&Sha512::digest(&bytes));
    if found != package.sha512 {
        let message = format!(
            "has the SHA-512 {}..., not the {}... of {}",
            &found[..16],
            &package.sha512[..16],
            package.pinned()
        );
        return Err(Error::file(path, message).with_help(help));
    }
    Ok(Opened::Archive(path.to_owned(), bytes))
}

fn check_version(folder: &Path, package: &Package) -> Result<()> {
    let path = folder.join("package.json");
    let manifest: serde_json::Value = serde_json::from_slice(&bounded(&path, 1 << 20)?)
        .map_err(|e| Error::file(&path, format!("no package description: {e}")))?;
    let version = manifest["version"].as_str().unwrap_or("unknown");
    if version != package.version {
        return Err(Error::file(&path, format!("is version {version}, needed is {}", package.pinned()))
            .with_help(format!("run `npm pack {}` in the folder that --from names", package.pinned())));
    }
    Ok(())
}

fn bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let explain = |e| Error::io(path, e);
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(explain)?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(explain)?;
    if bytes.len() as u64 > limit {
        return Err(Error::file(path, format!("is larger than {} MiB", limit >> 20)));
    }
    Ok(bytes)
}

/// Files of a gzipped tar archive in npm's layout: all below one folder, names of at most 255 bytes (POSIX ustar).
fn unpack(packed: &[u8], members: &[String]) -> std::result::Result<BTreeMap<String, Vec<u8>>, String> {
    const BLOCK: usize = 512;
    let mut reader = flate2::read::GzDecoder::new(packed).take(MAX_UNPACKED_BYTES);
    let mut found = BTreeMap::new();
    let damaged = |e: std::io::Error| format!("is no whole archive: {e}");
    let mut header = [0; BLOCK];
    loop {
        match reader.read_exact(&mut header) {
            Ok(()) => {}
            Err(e) => return Err(damaged(e)),
        }
        if header.iter().all(|&byte| byte == 0) {
            return Ok(found);
        }
        let text = |range: std::ops::Range<usize>| {
            let field = &header[range];
            let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
            String::from_utf8_lossy(&field[..end]).into_owned()
        };
        let size = u64::from_str_radix(text(124..136).trim(), 8).map_err(|_| "is no archive: a file has no size")?;
        let (prefix, name) = (text(345..500), text(0..100));
        let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        let inner = path.split_once('/').map_or("", |(_, inner)| inner);
        let is_file = matches!(header[156], 0 | b'0');
        let padded = size.next_multiple_of(BLOCK as u64);
        if is_file && members.iter().any(|member| member == inner) {
            if size > MAX_MEMBER_BYTES {
                return Err(format!("its file {inner} claims {size} bytes"));
            }
            let mut content = Vec::new();
            (&mut reader).take(size).read_to_end(&mut content).map_err(damaged)?;
            if content.len() as u64 != size {
                return Err(format!("ends inside its file {inner}"));
            }
            found.insert(inner.to_owned(), content);
            std::io::copy(&mut (&mut reader).take(padded - size), &mut std::io::sink()).map_err(damaged)?;
        } else {
            std::io::copy(&mut (&mut reader).take(padded), &mut std::io::sink()).map_err(damaged)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tar archive with one file, as npm packs it.
    fn packed(name: &str, content: &[u8], claimed: usize) -> Vec<u8> {
        use std::io::Write as _;
        let mut header = [0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{claimed:011o}").as_bytes());
        header[156] = b'0';
        let mut tar = [&header[..], content].concat();
        tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&tar).expect("packed");
        encoder.finish().expect("packed")
    }

    #[test]
    fn files_of_an_archive_are_read_and_bounded() {
        let wanted = ["icons.json".to_owned()];
        let good = packed("package/icons.json", b"{}", 2);
        assert_eq!(unpack(&good, &wanted).expect("read")["icons.json"], b"{}");
        assert!(unpack(&packed("package/other.json", b"{}", 2), &wanted).expect("read").is_empty());
        let refused = |bytes: &[u8]| unpack(bytes, &wanted).expect_err("refused");
        assert!(refused(&good[..good.len() / 2]).contains("no whole archive"));
        assert!(refused(b"junk").contains("no whole archive"));
        assert!(refused(&packed("package/icons.json", b"{}", 1 << 30)).contains("claims 1073741824 bytes"));
        assert!(refused(&packed("package/icons.json", b"{}", 100_000)).contains("ends inside its file icons.json"));
    }

    #[test]
    fn every_package_is_pinned() {
        for package in STYLES.iter().chain([&NAMES, &ANNOTATIONS, &DERIVED_ANNOTATIONS]) {
            assert_eq!(package.sha512.len(), 128, "{}", package.name);
            assert!(package.file_name().ends_with(&format!("{}-{}.tgz", package.short_name(), package.version)));
        }
        assert_eq!(STYLES[0].file_name(), "iconify-json-noto-1.2.9.tgz");
    }

    /// A stand-in for npm: a shell script that gets npm's arguments, the folder last.
    #[cfg(unix)]
    #[test]
    fn what_npm_brings_is_checked_and_kept() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let content = packed("package/icons.json", b"{}", 2);
        let source = cache.path().join("source");
        std::fs::write(&source, &content).expect("written");
        let sha512 = crate::digest::hex(&Sha512::digest(&content)).leak();
        let package = Package { name: "@x/y", version: "1.0.0", sha512 };
        let fetched = |script: &str, package: &Package| {
            let script = format!("for last; do :; done; {script}");
            fetch(&["sh", "-c", &script, "npm"], package, cache.path())
        };
        let copy = format!("test \"$1 $2\" = 'pack @x/y@1.0.0' && cp '{}' \"$last/x-y-1.0.0.tgz\"", source.display());
        let wrong = fetched(&copy, &Package { sha512: NAMES.sha512, ..package }).expect_err("another digest");
        assert!(wrong.to_string().contains("not the 62f81be405a81d58"), "{wrong}");
        assert!(wrong.help().is_some_and(|help| help.contains("do not use it")));
        let kept = cache.path().join("x-y-1.0.0.tgz");
        assert!(!kept.exists());
        fetched(&copy, &package).expect("fetched");
        assert!(kept.exists());
        let opened = Packages::Cache(cache.path().to_owned()).open(&package).expect("kept");
        assert!(opened.verified() && opened.read(&["icons.json".to_owned()]).expect("read").len() == 1);

        let refused = |script: &str| {
            let error = fetched(script, &package).expect_err("refused");
            assert!(error.help().is_some_and(|help| help.contains("--from DIR")));
            error.to_string()
        };
        let offline = "echo 'npm error code ENOTFOUND' >&2; echo 'npm error network no route' >&2; exit 1";
        assert!(refused(offline).contains("ENOTFOUND"));
        assert!(refused("true").contains("gave no reason"));
        let none = fetch(&["no-such-program-here"], &package, cache.path()).expect_err("not installed");
        assert!(none.to_string().contains("npm, which would fetch it, is not installed"), "{none}");
        assert!(none.help().is_some_and(|help| help.contains("--from DIR")));
    }
}
